//! No input makes the crate panic, overflow its stack, leave the model's folder or allocate what the input only claims.

#[path = "hostile/external.rs"]
mod external;
#[path = "hostile/samples.rs"]
mod samples;
#[path = "hostile/tensors.rs"]
mod tensors;

use bytes::Bytes;
use lorafa_onnx::file::{self, FileErrorKind as Kind};
use lorafa_onnx::proto::{AttributeProto, GraphProto, ModelProto};
use lorafa_onnx::tensor;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use prost::Message as _;

/// A truncation is tried this often along the sample.
const STRIDE: usize = 1_000;

/// Random mutations tried: a second's worth in a debug build.
const MUTATIONS: u32 = 2_000;

/// Does with the bytes all that this crate does with a model.
fn exercise(bytes: Vec<u8>) -> Result<ModelProto, Kind> {
    let model = file::decode(bytes.into())?;
    visit_graph(model.graph.as_ref().expect("a decoded model has a graph"));
    Ok(model)
}

fn visit_graph(graph: &GraphProto) {
    for weight in &graph.initializer {
        let _ = tensor::payload(weight);
    }
    for attribute in graph.node.iter().flat_map(|node| &node.attribute) {
        visit_attribute(attribute);
    }
}

fn visit_attribute(attribute: &AttributeProto) {
    for value in attribute.t.iter().chain(&attribute.tensors) {
        let _ = tensor::payload(value);
    }
    for graph in attribute.g.iter().chain(&attribute.graphs) {
        visit_graph(graph);
    }
}

fn sample_bytes() -> Vec<u8> {
    samples::model().encode_to_vec()
}

#[test]
fn the_sample_itself_is_fine() {
    let model = exercise(sample_bytes()).expect("the sample decodes");
    assert_eq!(model, samples::model());
    assert!(sample_bytes().len() > 50 * STRIDE);
}

#[test]
fn a_truncated_model_says_where_it_ends() {
    let whole = sample_bytes();
    for end in (0..whole.len()).step_by(STRIDE) {
        match exercise(whole[..end].to_vec()) {
            Err(Kind::Empty) => assert_eq!(end, 0),
            Err(Kind::Truncated { field, size }) => assert_eq!((field, size), ("graph", end)),
            other => panic!("cut at {end}: {other:?}"),
        }
    }
}

#[test]
fn a_model_cut_anywhere_near_its_ends_is_an_error() {
    let whole = sample_bytes();
    let opset = 4;
    for end in (0..100).chain(whole.len() - opset..whole.len()) {
        let kind = exercise(whole[..end].to_vec()).expect_err("a part is no model");
        let told = matches!(
            kind,
            Kind::Empty | Kind::Truncated { .. } | Kind::NoGraph | Kind::NoOpset
        );
        assert!(told, "cut at {end}: {kind:?}");
    }
}

/// A model of `depth` graphs, each in an attribute of the one node of the one before.
fn nested(depth: usize) -> Vec<u8> {
    // From the inside out, and back to front, so that prepending a header is a push.
    let mut reversed: Vec<u8> = Vec::new();
    let wrap = |reversed: &mut Vec<u8>, field: u8| {
        let mut header = vec![field << 3 | 2];
        prost::encode_length_delimiter(reversed.len(), &mut header).expect("a Vec grows");
        reversed.extend(header.iter().rev());
    };
    const NODE_OF_GRAPH: u8 = 1;
    const ATTRIBUTE_OF_NODE: u8 = 5;
    const GRAPH_OF_ATTRIBUTE: u8 = 6;
    const GRAPH_OF_MODEL: u8 = 7;
    for _ in 0..depth {
        wrap(&mut reversed, GRAPH_OF_ATTRIBUTE);
        wrap(&mut reversed, ATTRIBUTE_OF_NODE);
        wrap(&mut reversed, NODE_OF_GRAPH);
    }
    wrap(&mut reversed, GRAPH_OF_MODEL);
    let mut bytes = vec![0x08, 10, 0x42, 2, 0x10, 20];
    bytes.extend(reversed.iter().rev());
    bytes
}

#[test]
fn nesting_has_a_limit() {
    exercise(nested(30)).expect("30 graphs in each other are odd but fine");
    assert!(matches!(exercise(nested(34)), Err(Kind::TooDeep)));
    assert!(matches!(exercise(nested(10_000)), Err(Kind::TooDeep)));
}

#[test]
fn unknown_groups_have_a_limit_too() {
    const START_OF_GROUP_30: [u8; 2] = [0xf3, 0x01];
    let mut bytes = vec![0x08, 10];
    bytes.extend(START_OF_GROUP_30.repeat(100_000));
    assert!(matches!(exercise(bytes), Err(Kind::TooDeep)));
}

#[test]
fn a_length_that_is_only_claimed_allocates_nothing() {
    // `graph` of 2^62 bytes, and a tensor whose dimensions multiply to 2^60 elements.
    let claim = [
        0x08, 10, 0x3a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40,
    ];
    assert!(matches!(
        exercise(claim.to_vec()),
        Err(Kind::Truncated { field: "graph", .. })
    ));
    let mut tensor = samples::tensor(1, &[1 << 30, 1 << 30]);
    tensor.float_data = vec![0.0; 4];
    let error = tensor::payload(&tensor).expect_err("4 elements are not 2^60");
    assert_eq!(
        error.to_string(),
        "tensor `w` has 4 elements in float_data; its shape needs 1152921504606846976"
    );
}

#[test]
fn weights_are_slices_of_the_file() {
    let bytes = Bytes::from(sample_bytes());
    let model = file::decode(bytes.clone()).expect("the sample decodes");
    let weight = &model.graph.as_ref().expect("it has a graph").initializer[0];
    let tensor::TensorPayload::Inline(raw) = tensor::payload(weight).expect("it is whole") else {
        panic!("it is inline");
    };
    assert!(bytes.as_ptr_range().contains(&raw.as_ptr()));
}

#[test]
fn no_mutation_panics() {
    let whole = sample_bytes();
    // The same cases on every run: a failure here must be one that anybody can repeat.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config {
        cases: MUTATIONS,
        failure_persistence: None,
        ..Config::default()
    };
    // Near the front and the back is structure; between them, mostly weights.
    let place = prop_oneof![
        0usize..600,
        any::<prop::sample::Index>().prop_map(|i| i.index(whole.len()))
    ];
    let edits = prop::collection::vec((place, any::<u8>()), 1..12);
    let tail = any::<prop::sample::Index>();
    TestRunner::new_with_rng(config, rng)
        .run(&(edits, tail, any::<bool>()), |(edits, tail, cut)| {
            let mut bytes = whole.clone();
            for (place, byte) in edits {
                bytes[place] = byte;
            }
            if cut {
                bytes.truncate(tail.index(whole.len()));
            }
            let _ = exercise(bytes);
            Ok(())
        })
        .expect("no mutation fails");
}

#[test]
fn no_random_bytes_panic() {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config {
        cases: MUTATIONS,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, rng)
        .run(&prop::collection::vec(any::<u8>(), 0..200), |bytes| {
            // With the first field in place, the walk that tells a cut from damage is reached as well.
            let begun = [&[0x08, 10], bytes.as_slice()].concat();
            let _ = exercise(begun);
            let _ = exercise(bytes);
            Ok(())
        })
        .expect("no bytes fail");
}
