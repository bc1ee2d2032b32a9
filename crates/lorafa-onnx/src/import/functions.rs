//! Model-local functions: each call becomes the function's nodes, or the op that the function was written for.
//!
//! A name of a body is replaced by what the call binds it to, or by a new one; an attribute that
//! refers to one of the call's takes its value, the function's default, or goes. Nodes that do not
//! say what module they belong to belong to their call's.

use super::LEAST_OPSET;
use super::error::ImportError;
use super::fused::Fused;
use super::node::{Node, module};
use crate::export::functions::Call;
use crate::file::ModelFile;
use crate::proto::{AttributeProto, FunctionProto, NodeProto, ValueInfoProto};
use prost::Message;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;

/// How deep calls may be nested: no exporter's modules come near it.
const MAX_DEPTH: usize = 100;

/// What functions may take in place of their calls, in bytes: a few calls of a few that call each
/// other grow without bound.
const MAX_BYTES: usize = 256 << 20;

/// The nodes of a model without calls of functions, each with its opset.
pub(super) struct Program<'m> {
    pub(super) nodes: Vec<(Cow<'m, NodeProto>, i64)>,
    /// What functions say of the values of their nodes.
    pub(super) infos: Vec<ValueInfoProto>,
    /// The nodes that are ops of ours.
    pub(super) ops: BTreeMap<usize, Rc<Call>>,
}

/// Puts functions where they are called.
pub(super) fn inline(model: &ModelFile) -> Result<Program<'_>, ImportError> {
    let mut inliner = Inliner {
        model,
        functions: functions(model)?,
        taken: BTreeMap::new(),
        bytes: 0,
        program: Program {
            nodes: Vec::with_capacity(model.graph().node.len()),
            infos: Vec::new(),
            ops: BTreeMap::new(),
        },
    };
    if inliner.functions.is_empty() {
        for node in &model.graph().node {
            let opset = model.opset(node.domain()).unwrap_or(0);
            inliner.program.nodes.push((Cow::Borrowed(node), opset));
        }
    } else {
        inliner.reserve();
        inliner.run()?;
    }
    Ok(inliner.program)
}

/// Domain, name and overload.
type Key<'m> = (&'m str, &'m str, &'m str);

fn key<'m>(domain: &'m str, name: &'m str, overload: &'m str) -> Key<'m> {
    let domain = if domain == "ai.onnx" { "" } else { domain };
    (domain, name, overload)
}

fn functions(model: &ModelFile) -> Result<BTreeMap<Key<'_>, &FunctionProto>, ImportError> {
    let mut functions = BTreeMap::new();
    for function in &model.proto().functions {
        let key = key(function.domain(), function.name(), function.overload());
        if functions.insert(key, function).is_some() {
            let (first, second) = ("a function".into(), "a function".into());
            return Err(ImportError::Duplicate {
                name: function.name().into(),
                first,
                second,
            });
        }
    }
    Ok(functions)
}

/// A function under way.
struct Body<'m> {
    function: &'m FunctionProto,
    /// The next of its nodes.
    next: usize,
    /// What the body's names stand for.
    names: BTreeMap<&'m str, String>,
    attributes: BTreeMap<&'m str, AttributeProto>,
    /// The node that calls.
    node: NodeProto,
}

struct Inliner<'m> {
    model: &'m ModelFile,
    functions: BTreeMap<Key<'m>, &'m FunctionProto>,
    /// Names given out, with the last number that was appended.
    taken: BTreeMap<String, usize>,
    bytes: usize,
    program: Program<'m>,
}

impl<'m> Inliner<'m> {
    /// The graph's own names are its own.
    fn reserve(&mut self) {
        let graph = self.model.graph();
        let nodes = graph
            .node
            .iter()
            .flat_map(|n| n.input.iter().chain(&n.output));
        let inputs = graph.input.iter().map(|i| i.name());
        let weights = graph.initializer.iter().map(|t| t.name());
        let names = nodes.map(String::as_str).chain(inputs).chain(weights);
        self.taken = names.map(|name| (name.to_string(), 0)).collect();
    }

    fn run(&mut self) -> Result<(), ImportError> {
        let mut fused = Fused::new(self.model.graph());
        for node in &self.model.graph().node {
            let opset = self.model.opset(node.domain()).unwrap_or(0);
            let Some(function) = self.called(node) else {
                self.program.nodes.push((Cow::Borrowed(node), opset));
                continue;
            };
            if let Some(op) = fused.op(node, function) {
                self.program.ops.insert(self.program.nodes.len(), op);
                self.program.nodes.push((Cow::Borrowed(node), opset));
                continue;
            }
            let mut calls = vec![self.call(function, node.clone(), opset)?];
            while let Some(call) = calls.last_mut() {
                let Some(body) = call.function.node.get(call.next) else {
                    calls.pop();
                    continue;
                };
                call.next += 1;
                let node = self.instance(call, body);
                let own = call.function.opset_import.iter();
                let own = own
                    .filter(|o| key(o.domain(), "", "") == key(node.domain(), "", ""))
                    .map(|o| o.version());
                let own = own.chain(self.model.opset(node.domain()));
                let opset = own.into_iter().next().unwrap_or(0);
                self.charge(&node, opset, node.encoded_len())?;
                let Some(function) = self.called(&node) else {
                    self.program.nodes.push((Cow::Owned(node), opset));
                    continue;
                };
                if calls.iter().any(|c| std::ptr::eq(c.function, function)) {
                    return Err(refused(&node, opset, "the function calls itself"));
                }
                if calls.len() == MAX_DEPTH {
                    let why = format!("its function is nested more than {MAX_DEPTH} deep");
                    return Err(refused(&node, opset, &why));
                }
                calls.push(self.call(function, node, opset)?);
            }
        }
        Ok(())
    }

    /// The function that a node calls.
    fn called(&self, node: &NodeProto) -> Option<&'m FunctionProto> {
        let key = key(node.domain(), node.op_type(), node.overload());
        self.functions.get(&key).copied()
    }

    /// Counts what a node adds.
    fn charge(&mut self, node: &NodeProto, opset: i64, bytes: usize) -> Result<(), ImportError> {
        self.bytes = self.bytes.saturating_add(bytes).saturating_add(64);
        if self.bytes > MAX_BYTES {
            let why = format!(
                "functions take more than {} MiB in place of their calls",
                MAX_BYTES >> 20
            );
            return Err(refused(node, opset, &why));
        }
        Ok(())
    }

    /// Binds a function's names and attributes to those of a call.
    fn call(
        &mut self,
        function: &'m FunctionProto,
        node: NodeProto,
        opset: i64,
    ) -> Result<Body<'m>, ImportError> {
        let size = function.input.len() + function.output.len() + function.attribute.len();
        let described = function.attribute_proto.iter().map(Message::encoded_len);
        let described = described.chain(function.value_info.iter().map(Message::encoded_len));
        self.charge(&node, opset, size * 64 + described.sum::<usize>())?;
        let default = |o: &&crate::proto::OperatorSetIdProto| key(o.domain(), "", "").0.is_empty();
        let imported = function.opset_import.iter().find(default);
        if let Some(found) = imported.map(|o| o.version()).filter(|n| *n < LEAST_OPSET) {
            return Err(ImportError::OldOpset {
                found,
                least: LEAST_OPSET,
            });
        }
        for (what, given, formal) in [
            ("inputs", &node.input, &function.input),
            ("outputs", &node.output, &function.output),
        ] {
            if given.iter().skip(formal.len()).any(|name| !name.is_empty()) {
                let (given, formal) = (given.len(), formal.len());
                let why = format!("it has {given} {what}, and its function {formal}");
                return Err(refused(&node, opset, &why));
            }
        }
        let mut names = BTreeMap::new();
        let actual = |names: &[String], slot: usize| names.get(slot).cloned().unwrap_or_default();
        for (slot, formal) in function.input.iter().enumerate() {
            names.insert(formal.as_str(), actual(&node.input, slot));
        }
        for (slot, formal) in function.output.iter().enumerate() {
            let to = actual(&node.output, slot);
            if to.is_empty() {
                continue;
            }
            // An input, or another output, under a second name.
            if let Some(from) = names.get(formal.as_str()) {
                let copy = NodeProto {
                    name: node.name.clone(),
                    op_type: Some("Identity".into()),
                    input: vec![from.clone()],
                    output: vec![to],
                    metadata_props: node.metadata_props.clone(),
                    ..NodeProto::default()
                };
                self.charge(&node, opset, copy.encoded_len())?;
                let opset = self.model.opset("").unwrap_or(0);
                self.program.nodes.push((Cow::Owned(copy), opset));
            } else {
                names.insert(formal, to);
            }
        }
        let mut given = BTreeMap::new();
        for attribute in &node.attribute {
            given.entry(attribute.name()).or_insert(attribute);
        }
        let mut attributes: BTreeMap<&str, AttributeProto> = BTreeMap::new();
        for default in &function.attribute_proto {
            attributes.insert(default.name(), default.clone());
        }
        let formal = function.attribute.iter().map(String::as_str);
        for name in formal.chain(function.attribute_proto.iter().map(|a| a.name())) {
            if let Some(attribute) = given.get(name) {
                attributes.insert(name, (*attribute).clone());
            }
        }
        let mut call = Body {
            function,
            next: 0,
            names,
            attributes,
            node,
        };
        for info in &function.value_info {
            let name = self.name(&mut call.names, info.name());
            self.program.infos.push(ValueInfoProto {
                name: Some(name),
                ..info.clone()
            });
        }
        Ok(call)
    }

    /// A node of a body as the call has it.
    fn instance(&mut self, call: &mut Body<'m>, body: &'m NodeProto) -> NodeProto {
        let mut node = NodeProto {
            input: Vec::with_capacity(body.input.len()),
            output: Vec::with_capacity(body.output.len()),
            attribute: Vec::with_capacity(body.attribute.len()),
            name: body.name.clone(),
            op_type: body.op_type.clone(),
            domain: body.domain.clone(),
            overload: body.overload.clone(),
            metadata_props: body.metadata_props.clone(),
            ..NodeProto::default()
        };
        for name in &body.input {
            node.input.push(self.name(&mut call.names, name));
        }
        for name in &body.output {
            node.output.push(self.name(&mut call.names, name));
        }
        for attribute in &body.attribute {
            if attribute.ref_attr_name().is_empty() {
                node.attribute.push(attribute.clone());
            } else if let Some(bound) = call.attributes.get(attribute.ref_attr_name()) {
                let name = attribute.name.clone();
                node.attribute.push(AttributeProto {
                    name,
                    ..bound.clone()
                });
            }
        }
        if module(&node).is_empty() {
            if !call.node.name().is_empty() {
                node.name = Some(format!("{}.{}", call.node.name(), body.name()));
            }
            node.metadata_props
                .extend(call.node.metadata_props.iter().cloned());
        }
        node
    }

    /// What a body's name stands for: something new if nothing else yet.
    fn name(&mut self, names: &mut BTreeMap<&'m str, String>, name: &'m str) -> String {
        if name.is_empty() {
            return String::new();
        }
        if let Some(name) = names.get(name) {
            return name.clone();
        }
        let fresh = self.fresh(name);
        names.insert(name, fresh.clone());
        fresh
    }

    /// The name, or `name_1`, `name_2`, … if it is taken: with a dot it would be a module's weight.
    fn fresh(&mut self, name: &str) -> String {
        let mut fresh = name.to_string();
        let mut n = self.taken.get(name).copied().unwrap_or(0);
        while self.taken.contains_key(&fresh) {
            n += 1;
            fresh = format!("{name}_{n}");
        }
        self.taken.insert(fresh.clone(), 0);
        self.taken.insert(name.to_string(), n);
        fresh
    }
}

fn refused(node: &NodeProto, opset: i64, why: &str) -> ImportError {
    let place = Node {
        proto: node,
        seq: 0,
        opset,
    };
    ImportError::Node {
        place: place.place(),
        why: why.into(),
    }
}
