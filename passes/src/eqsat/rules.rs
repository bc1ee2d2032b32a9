//! What is equal.

use super::language::{Dims, Kind, Leaf, Tensor, Term, Terms, Types, leaf};
use egg::{Applier, FlatTerm, Id, Pattern, PatternAst, RecExpr, Rewrite, Subst, Symbol, Var};
use std::sync::LazyLock;

/// A rule: terms of the first form are equal to the second. The last column says when, and binds what the second form has
/// that the first has not.
pub(crate) type Rule = (&'static str, &'static str, &'static str, When);

/// Whether a rule holds for some terms.
pub(crate) type When = fn(&mut Terms, &mut Subst) -> Option<()>;

#[rustfmt::skip]
pub(crate) const RULES: &[Rule] = &[
    ("associate-left",        "(product ?a (product ?b ?c))",          "(product (product ?a ?b) ?c)",                     always),
    ("associate-right",       "(product (product ?a ?b) ?c)",          "(product ?a (product ?b ?c))",                     always),
    ("transpose-into",        "(transpose (product ?a ?b))",           "(product (transpose ?b) (transpose ?a))",          always),
    ("transpose-out",         "(product (transpose ?b) (transpose ?a))", "(transpose (product ?a ?b))",                    always),
    ("transpose-twice",       "(transpose (transpose ?a))",            "?a",                                               always),
    ("scale-left-out",        "(product (scale ?a ?k) ?b)",            "(scale (product ?a ?b) ?k)",                       always),
    ("scale-right-out",       "(product ?a (scale ?b ?k))",            "(scale (product ?a ?b) ?k)",                       always),
    ("scale-left-in",         "(scale (product ?a ?b) ?k)",            "(product (scale ?a ?k) ?b)",                       always),
    ("scale-right-in",        "(scale (product ?a ?b) ?k)",            "(product ?a (scale ?b ?k))",                       always),
    ("scale-twice",           "(scale (scale ?a ?k) ?l)",              "(scale ?a (times ?k ?l))",                         one_factor),
    ("scale-transpose",       "(scale (transpose ?a) ?k)",             "(transpose (scale ?a ?k))",                        always),
    ("transpose-scale",       "(transpose (scale ?a ?k))",             "(scale (transpose ?a) ?k)",                        always),
    ("scale-reshape",         "(scale (reshape ?a ?s) ?k)",            "(reshape (scale ?a ?k) ?s)",                       always),
    ("reshape-scale",         "(reshape (scale ?a ?k) ?s)",            "(scale (reshape ?a ?s) ?k)",                       always),
    ("reshape-twice",         "(reshape (reshape ?a ?s) ?t)",          "(reshape ?a ?t)",                                  always),
    ("reshape-to-itself",     "(reshape ?a ?s)",                       "?a",                                               has_shape),
    ("rows-into-product",     "(reshape (product ?x ?w) ?s)",          "(product (reshape ?x ?r) ?w)",                     keeps_columns),
    ("rows-out-of-product",   "(product (reshape ?x ?s) ?w)",          "(reshape (product ?x ?w) ?r)",                     keeps_inner),
    ("batch-into-product",    "(sum (product (transpose ?x) ?y))",     "(product (transpose (reshape ?x ?r)) (reshape ?y ?s))", same_batch),
    ("sum-transpose",         "(sum (transpose ?a))",                  "(transpose (sum ?a))",                             always),
    ("sum-scale",             "(sum (scale ?a ?k))",                   "(scale (sum ?a) ?k)",                              always),
    ("sum-right",             "(sum (product ?w ?a))",                 "(product ?w (sum ?a))",                            one_matrix),
    ("sum-left",              "(sum (product ?a ?w))",                 "(product (sum ?a) ?w)",                            one_matrix),
    ("cast-transpose",        "(cast (transpose ?a) ?d)",              "(transpose (cast ?a ?d))",                         always),
    ("transpose-cast",        "(transpose (cast ?a ?d))",              "(cast (transpose ?a) ?d)",                         always),
    ("cast-reshape",          "(cast (reshape ?a ?s) ?d)",             "(reshape (cast ?a ?d) ?s)",                        always),
    ("reshape-cast",          "(reshape (cast ?a ?d) ?s)",             "(cast (reshape ?a ?s) ?d)",                        always),
];

fn var(name: &'static str) -> Option<Var> {
    name.parse().ok()
}

fn kind<'t>(terms: &'t Terms, subst: &Subst, name: &'static str) -> Option<&'t Kind> {
    Some(&terms[*subst.get(var(name)?)?].data)
}

fn tensor<'t>(terms: &'t Terms, subst: &Subst, name: &'static str) -> Option<&'t Tensor> {
    kind(terms, subst, name)?.tensor()
}

fn bind(terms: &mut Terms, subst: &mut Subst, name: &'static str, dims: Dims) -> Option<()> {
    let shape = leaf(terms, Leaf::Shape(dims));
    subst.insert(var(name)?, shape);
    Some(())
}

/// Dimensions with another last one.
fn with_last(dims: &Dims, last: u64) -> Option<Dims> {
    let mut dims = dims.clone();
    *dims.last_mut()? = last;
    Some(dims)
}

/// How many rows there are in all.
fn rows(dims: &Dims) -> u64 {
    let rows = dims.split_last();
    rows.map_or(1, |(_, rows)| rows.iter().product())
}

fn always(_: &mut Terms, _: &mut Subst) -> Option<()> {
    Some(())
}

/// `?a` has the shape `?s`.
fn has_shape(terms: &mut Terms, subst: &mut Subst) -> Option<()> {
    let same = tensor(terms, subst, "?a")?.dims == *kind(terms, subst, "?s")?.shape()?;
    same.then_some(())
}

/// The product of the factors `?k` and `?l` is one that the elements of `?a` can be multiplied with.
fn one_factor(terms: &mut Terms, subst: &mut Subst) -> Option<()> {
    let (Kind::Number(k), Kind::Number(l)) = (kind(terms, subst, "?k")?, kind(terms, subst, "?l")?)
    else {
        return None;
    };
    let exact = k * l;
    let rounded = tensor(terms, subst, "?a")?.dtype.round(exact);
    let lost = rounded == 0.0 && *k != 0.0 && *l != 0.0;
    (rounded.is_finite() && !lost).then_some(())
}

/// `?w` is one matrix.
fn one_matrix(terms: &mut Terms, subst: &mut Subst) -> Option<()> {
    (tensor(terms, subst, "?w")?.dims.len() == 2).then_some(())
}

/// The shape `?s` of a product of rows with a matrix `?w` has its columns: `?r` has those of the rows.
fn keeps_columns(terms: &mut Terms, subst: &mut Subst) -> Option<()> {
    one_matrix(terms, subst)?;
    let [inner, columns] = *tensor(terms, subst, "?w")?.dims.as_slice() else {
        return None;
    };
    let product = &tensor(terms, subst, "?x")?.dims;
    let to = kind(terms, subst, "?s")?.shape()?;
    let keeps = to.len() >= 2 && *to.last()? == columns && rows(product) == rows(to);
    let factor = keeps.then(|| with_last(to, inner))??;
    bind(terms, subst, "?r", factor)
}

/// The shape `?s` of rows `?x`, which are multiplied with a matrix `?w`, has their columns: `?r` has those of the product.
fn keeps_inner(terms: &mut Terms, subst: &mut Subst) -> Option<()> {
    one_matrix(terms, subst)?;
    let columns = *tensor(terms, subst, "?w")?.dims.last()?;
    let x = &tensor(terms, subst, "?x")?.dims;
    let to = kind(terms, subst, "?s")?.shape()?;
    let keeps = x.len() >= 2 && x.last() == to.last() && rows(x) == rows(to);
    let product = keeps.then(|| with_last(to, columns))??;
    bind(terms, subst, "?r", product)
}

/// `?x` and `?y` are batches of the same size: `?r` and `?s` are their shapes as one matrix.
fn same_batch(terms: &mut Terms, subst: &mut Subst) -> Option<()> {
    let (x, y) = (tensor(terms, subst, "?x")?, tensor(terms, subst, "?y")?);
    let (x, y) = (x.dims.split_last()?, y.dims.split_last()?);
    if x.1 != y.1 || x.1.len() < 2 {
        return None;
    }
    let rows = x.1.iter().product();
    let (x, y) = (
        Dims::from_slice(&[rows, *x.0]),
        Dims::from_slice(&[rows, *y.0]),
    );
    bind(terms, subst, "?r", x)?;
    bind(terms, subst, "?s", y)
}

/// The second form of a rule, where the rule holds.
struct Where {
    form: Pattern<Term>,
    when: When,
}

impl Applier<Term, Types> for Where {
    fn apply_one(
        &self,
        terms: &mut Terms,
        class: Id,
        subst: &Subst,
        searched: Option<&PatternAst<Term>>,
        rule: Symbol,
    ) -> Vec<Id> {
        let mut subst = subst.clone();
        match (self.when)(terms, &mut subst) {
            Some(()) => self.form.apply_one(terms, class, &subst, searched, rule),
            None => Vec::new(),
        }
    }
}

/// A form of a rule.
pub(crate) fn form(form: &str) -> Pattern<Term> {
    match form.parse() {
        Ok(form) => form,
        Err(error) => unreachable!("{form} is one of the table's: {error}"),
    }
}

/// The rules as egg takes them.
pub(crate) fn all() -> &'static [Rewrite<Term, Types>] {
    static ALL: LazyLock<Vec<Rewrite<Term, Types>>> = LazyLock::new(|| {
        let rules = RULES.iter().map(|(name, from, to, when)| {
            let to = Where {
                form: form(to),
                when: *when,
            };
            Rewrite::new(*name, form(from), to)
        });
        rules.flatten().collect()
    });
    &ALL
}

/// The rules that lead from one term to another, as egg explains it, without what leads back to a term that was there before.
/// Those that were used from right to left are marked so.
pub(crate) fn chain(terms: &mut Terms, from: &RecExpr<Term>, to: &RecExpr<Term>) -> Vec<String> {
    let mut explained = terms.explain_equivalence(from, to);
    let mut path: Vec<&FlatTerm<Term>> = Vec::new();
    for term in explained.make_flat_explanation() {
        match path.iter().position(|before| *before == term) {
            Some(at) => path.truncate(at + 1),
            None => path.push(term),
        }
    }
    let mut names = Vec::new();
    for term in path {
        names_in(term, &mut names);
    }
    names.dedup();
    names
}

fn names_in(term: &FlatTerm<Term>, names: &mut Vec<String>) {
    names.extend(term.forward_rule.map(|rule| rule.to_string()));
    names.extend(term.backward_rule.map(|rule| format!("{rule} reversed")));
    for child in &term.children {
        names_in(child, names);
    }
}
