//! Symbolic dimensions.
//!
//! A [`Dim`] is an integer polynomial over named symbols (`batch`, `seq`) and over the few
//! non-polynomial terms that exporters write (`a//b`, `max(a, b)`, `min(a, b)`). Polynomials are
//! kept in a normal form, so equality of dimensions is equality of `Dim`s. Arithmetic saturates,
//! and so does an expression with too many terms: a dimension that large is refused where a type
//! is built from it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// What symbols stand for.
pub type Bindings = BTreeMap<Arc<str>, i64>;

/// A dimension, or any integer that shapes are computed from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dim {
    /// A number.
    Known(i64),
    /// A polynomial with at least one symbol.
    Expr(Arc<Poly>),
}

/// A sum of products in normal form: terms sorted by their atoms, no zero coefficient.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Poly(Vec<Term>);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Term {
    atoms: Vec<Atom>,
    coeff: i64,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Atom {
    Sym(Arc<str>),
    FloorDiv(Dim, Dim),
    Max(Dim, Dim),
    Min(Dim, Dim),
}

/// Terms and atoms of an expression, those inside its divisions included, beyond which it
/// saturates: exporters write a handful, and products of sums grow exponentially.
const MAX_SIZE: usize = 256;

/// Divisions, maxima and minima inside each other beyond which an expression saturates, to bound
/// recursion.
const MAX_LEVELS: usize = 16;

impl Poly {
    /// The number of terms and atoms, and the levels of nesting.
    fn size(&self) -> (usize, usize) {
        let (mut size, mut levels) = (self.0.len(), 0);
        for atom in self.0.iter().flat_map(|t| &t.atoms) {
            size += 1;
            let (Atom::FloorDiv(a, b) | Atom::Max(a, b) | Atom::Min(a, b)) = atom else {
                continue;
            };
            for dim in [a, b] {
                let inner = match dim {
                    Dim::Known(_) => (1, 0),
                    Dim::Expr(poly) => poly.size(),
                };
                size += inner.0;
                levels = levels.max(inner.1 + 1);
            }
        }
        (size, levels)
    }
}

impl Dim {
    /// The symbol `name`.
    pub fn sym(name: &str) -> Dim {
        Dim::atom(Atom::Sym(name.into()))
    }

    fn atom(atom: Atom) -> Dim {
        Dim::bounded(vec![Term {
            atoms: vec![atom],
            coeff: 1,
        }])
    }

    /// The polynomial, or the largest number if it is beyond the limits.
    fn bounded(terms: Vec<Term>) -> Dim {
        let poly = Poly(terms);
        let (size, levels) = poly.size();
        if size > MAX_SIZE || levels > MAX_LEVELS {
            Dim::Known(i64::MAX)
        } else {
            Dim::Expr(Arc::new(poly))
        }
    }

    /// The number, if no symbol is left.
    pub fn known(&self) -> Option<i64> {
        match self {
            Dim::Known(n) => Some(*n),
            Dim::Expr(_) => None,
        }
    }

    /// Whether this is no negative number whatever sizes the symbols stand for.
    pub fn is_size(&self) -> bool {
        let atom = |atom: &Atom| match atom {
            Atom::Sym(_) => true,
            Atom::FloorDiv(a, b) | Atom::Min(a, b) => a.is_size() && b.is_size(),
            Atom::Max(a, b) => a.is_size() || b.is_size(),
        };
        match self {
            Dim::Known(n) => *n >= 0,
            Dim::Expr(poly) => poly
                .0
                .iter()
                .all(|t| t.coeff >= 0 && t.atoms.iter().all(atom)),
        }
    }

    /// Whether this is the number `n`.
    pub fn is(&self, n: i64) -> bool {
        *self == Dim::Known(n)
    }

    /// The symbol's name, if this is a symbol alone.
    pub fn as_symbol(&self) -> Option<&Arc<str>> {
        match self.as_atom() {
            Some(Atom::Sym(name)) => Some(name),
            _ => None,
        }
    }

    /// The atom, if this is one alone.
    fn as_atom(&self) -> Option<&Atom> {
        let Dim::Expr(poly) = self else { return None };
        match poly.0.as_slice() {
            [Term { atoms, coeff: 1 }] => match atoms.as_slice() {
                [atom] => Some(atom),
                _ => None,
            },
            _ => None,
        }
    }

    fn terms(&self) -> Vec<Term> {
        match self {
            Dim::Known(0) => Vec::new(),
            Dim::Known(n) => vec![Term {
                atoms: Vec::new(),
                coeff: *n,
            }],
            Dim::Expr(poly) => poly.0.clone(),
        }
    }

    fn from_terms(terms: impl IntoIterator<Item = Term>) -> Dim {
        let mut sum: BTreeMap<Vec<Atom>, i64> = BTreeMap::new();
        for term in terms {
            let coeff = sum.entry(term.atoms).or_default();
            *coeff = coeff.saturating_add(term.coeff).max(-i64::MAX);
        }
        let terms: Vec<Term> = sum
            .into_iter()
            .filter(|(_, coeff)| *coeff != 0)
            .map(|(atoms, coeff)| Term { atoms, coeff })
            .collect();
        match terms.as_slice() {
            [] => Dim::Known(0),
            [only] if only.atoms.is_empty() => Dim::Known(only.coeff),
            _ => Dim::bounded(terms),
        }
    }

    /// `self + other`.
    pub fn plus(&self, other: &Dim) -> Dim {
        match (self, other) {
            (Dim::Known(a), Dim::Known(b)) => Dim::Known(a.saturating_add(*b).max(-i64::MAX)),
            _ => Dim::from_terms(self.terms().into_iter().chain(other.terms())),
        }
    }

    /// `self - other`.
    pub fn minus(&self, other: &Dim) -> Dim {
        self.plus(&other.times(&Dim::Known(-1)))
    }

    /// `self * other`.
    pub fn times(&self, other: &Dim) -> Dim {
        if let (Dim::Known(a), Dim::Known(b)) = (self, other) {
            return Dim::Known(a.saturating_mul(*b).max(-i64::MAX));
        }
        let (left, right) = (self.terms(), other.terms());
        Dim::from_terms(left.iter().flat_map(|a| {
            right.iter().map(move |b| {
                let mut atoms: Vec<Atom> = a.atoms.iter().chain(&b.atoms).cloned().collect();
                atoms.sort();
                Term {
                    atoms,
                    coeff: a.coeff.saturating_mul(b.coeff).max(-i64::MAX),
                }
            })
        }))
    }

    /// `self / other` where that leaves no remainder for any value of the symbols.
    pub fn exact_div(&self, other: &Dim) -> Option<Dim> {
        if let (Dim::Known(a), Dim::Known(b)) = (self, other) {
            return (*b != 0 && a.checked_rem(*b) == Some(0)).then(|| Dim::Known(a / b));
        }
        if self == other {
            return Some(Dim::Known(1));
        }
        let divisor = other.terms();
        let [by] = divisor.as_slice() else {
            return None;
        };
        let mut quotient = Vec::new();
        for term in self.terms() {
            let mut atoms = term.atoms;
            for atom in &by.atoms {
                let at = atoms.iter().position(|a| a == atom)?;
                atoms.remove(at);
            }
            if term.coeff.checked_rem(by.coeff) != Some(0) {
                return None;
            }
            quotient.push(Term {
                atoms,
                coeff: term.coeff / by.coeff,
            });
        }
        Some(Dim::from_terms(quotient))
    }

    /// `self // other`, rounded towards minus infinity; `None` for a division by zero.
    pub fn floor_div(&self, other: &Dim) -> Option<Dim> {
        match (self, other) {
            (_, Dim::Known(0)) => None,
            (Dim::Known(i64::MAX), Dim::Expr(_)) => Some(self.clone()),
            (Dim::Known(a), Dim::Known(b)) => {
                let q = a.checked_div(*b)?;
                Some(Dim::Known(if a % b != 0 && (*a < 0) != (*b < 0) {
                    q - 1
                } else {
                    q
                }))
            }
            _ => Some(
                self.exact_div(other)
                    .unwrap_or_else(|| Dim::atom(Atom::FloorDiv(self.clone(), other.clone()))),
            ),
        }
    }

    /// The larger of the two.
    pub fn larger(&self, other: &Dim) -> Dim {
        match self.minus(other) {
            Dim::Known(n) => {
                if n >= 0 {
                    self.clone()
                } else {
                    other.clone()
                }
            }
            Dim::Expr(_) => {
                let (a, b) = if self <= other {
                    (self, other)
                } else {
                    (other, self)
                };
                let of = |x: &Dim, y: &Dim| matches!(x.as_atom(), Some(Atom::Max(a, b)) if a == y || b == y);
                match (of(a, b), of(b, a)) {
                    (true, _) => a.clone(),
                    (_, true) => b.clone(),
                    _ => Dim::atom(Atom::Max(a.clone(), b.clone())),
                }
            }
        }
    }

    /// The smaller of the two.
    pub fn smaller(&self, other: &Dim) -> Dim {
        match self.minus(other) {
            Dim::Known(n) => {
                if n <= 0 {
                    self.clone()
                } else {
                    other.clone()
                }
            }
            Dim::Expr(_) => {
                let (a, b) = if self <= other {
                    (self, other)
                } else {
                    (other, self)
                };
                match (a.is_least_of(b), b.is_least_of(a)) {
                    (true, _) => a.clone(),
                    (_, true) => b.clone(),
                    _ => Dim::atom(Atom::Min(a.clone(), b.clone())),
                }
            }
        }
    }

    /// Whether this is `min(other, …)`.
    pub(crate) fn is_least_of(&self, other: &Dim) -> bool {
        matches!(self.as_atom(), Some(Atom::Min(a, b)) if a == other || b == other)
    }

    /// Puts numbers in for the symbols that `bindings` names.
    ///
    /// `None` where a division by zero results.
    pub fn bind(&self, bindings: &Bindings) -> Option<Dim> {
        let Dim::Expr(poly) = self else {
            return Some(self.clone());
        };
        let mut sum = Dim::Known(0);
        for term in &poly.0 {
            let mut product = Dim::Known(term.coeff);
            for atom in &term.atoms {
                let factor = match atom {
                    Atom::Sym(name) => match bindings.get(name) {
                        Some(n) => Dim::Known(*n),
                        None => Dim::sym(name),
                    },
                    Atom::FloorDiv(a, b) => a.bind(bindings)?.floor_div(&b.bind(bindings)?)?,
                    Atom::Max(a, b) => a.bind(bindings)?.larger(&b.bind(bindings)?),
                    Atom::Min(a, b) => a.bind(bindings)?.smaller(&b.bind(bindings)?),
                };
                product = product.times(&factor);
            }
            sum = sum.plus(&product);
        }
        Some(sum)
    }

    /// Adds every symbol's name to `names`.
    pub fn symbols(&self, names: &mut std::collections::BTreeSet<Arc<str>>) {
        let Dim::Expr(poly) = self else { return };
        for atom in poly.0.iter().flat_map(|t| &t.atoms) {
            match atom {
                Atom::Sym(name) => {
                    names.insert(name.clone());
                }
                Atom::FloorDiv(a, b) | Atom::Max(a, b) | Atom::Min(a, b) => {
                    a.symbols(names);
                    b.symbols(names);
                }
            }
        }
    }
}

impl From<i64> for Dim {
    fn from(n: i64) -> Self {
        Dim::Known(n)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Known(n) => write!(f, "{n}"),
            Dim::Expr(poly) => write!(f, "{poly}"),
        }
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Poly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The constant term sorts first and reads better last.
        let constant_last = self.0.iter().skip_while(|t| t.atoms.is_empty());
        let constant = self.0.iter().take_while(|t| t.atoms.is_empty());
        for (i, term) in constant_last.chain(constant).enumerate() {
            match (i, term.coeff < 0) {
                (0, true) => f.write_str("-")?,
                (0, false) => {}
                (_, true) => f.write_str(" - ")?,
                (_, false) => f.write_str(" + ")?,
            }
            let coeff = term.coeff.unsigned_abs();
            if coeff != 1 || term.atoms.is_empty() {
                write!(f, "{coeff}")?;
                if !term.atoms.is_empty() {
                    f.write_str("*")?;
                }
            }
            for (j, atom) in term.atoms.iter().enumerate() {
                if j > 0 {
                    f.write_str("*")?;
                }
                match atom {
                    Atom::Sym(name) => f.write_str(name)?,
                    Atom::FloorDiv(a, b) => write!(f, "(({a})//({b}))")?,
                    Atom::Max(a, b) => write!(f, "max({a}, {b})")?,
                    Atom::Min(a, b) => write!(f, "min({a}, {b})")?,
                }
            }
        }
        Ok(())
    }
}

/// Parentheses inside each other beyond which a text is refused, to bound the parser's recursion;
/// the deepest expression prints two of them a level.
const MAX_DEPTH: usize = 2 * MAX_LEVELS + 8;

impl std::str::FromStr for Dim {
    type Err = String;

    /// Reads what `Display` prints, and what exporters write in `dim_param`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut p = Parser {
            text,
            at: 0,
            depth: 0,
        };
        let dim = p.sum()?;
        p.space();
        if p.at == text.len() {
            Ok(dim)
        } else {
            Err(p.error("an operator"))
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn error(&self, expected: &str) -> String {
        format!(
            "expected {expected} at column {} of dimension `{}`",
            self.at + 1,
            self.text
        )
    }

    fn space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn eat(&mut self, token: &str) -> bool {
        self.space();
        let hit = self.text[self.at..].starts_with(token);
        if hit {
            self.at += token.len();
        }
        hit
    }

    fn sum(&mut self) -> Result<Dim, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error("less nesting"));
        }
        let mut sum = if self.eat("-") {
            Dim::Known(0).minus(&self.product()?)
        } else {
            self.product()?
        };
        loop {
            if self.eat("+") {
                sum = sum.plus(&self.product()?);
            } else if self.eat("-") {
                sum = sum.minus(&self.product()?);
            } else {
                self.depth -= 1;
                return Ok(sum);
            }
        }
    }

    fn product(&mut self) -> Result<Dim, String> {
        let mut product = self.factor()?;
        loop {
            if self.eat("//") {
                let by = self.factor()?;
                product = product
                    .floor_div(&by)
                    .ok_or_else(|| self.error("a non-zero divisor"))?;
            } else if self.eat("*") {
                product = product.times(&self.factor()?);
            } else {
                return Ok(product);
            }
        }
    }

    fn factor(&mut self) -> Result<Dim, String> {
        if self.eat("(") {
            let inner = self.sum()?;
            return if self.eat(")") {
                Ok(inner)
            } else {
                Err(self.error("`)`"))
            };
        }
        self.space();
        let rest = &self.text[self.at..];
        let len = rest
            .find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.')))
            .unwrap_or(rest.len());
        let word = &rest[..len];
        if word.is_empty() {
            return Err(self.error("a number or a symbol"));
        }
        self.at += len;
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word
                .parse()
                .map(Dim::Known)
                .map_err(|_| self.error("a number"));
        }
        if matches!(word, "max" | "min" | "Max" | "Min") && self.eat("(") {
            let a = self.sum()?;
            if !self.eat(",") {
                return Err(self.error("`,`"));
            }
            let b = self.sum()?;
            if !self.eat(")") {
                return Err(self.error("`)`"));
            }
            return Ok(if word.eq_ignore_ascii_case("max") {
                a.larger(&b)
            } else {
                a.smaller(&b)
            });
        }
        Ok(Dim::sym(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn normal(text: &str, expected: &str) {
        let dim: Dim = text.parse().unwrap();
        assert_eq!(dim.to_string(), expected);
        assert_eq!(dim.to_string().parse::<Dim>().unwrap(), dim);
    }

    #[test]
    fn sums_and_products_have_one_spelling() {
        normal("seq + batch*2 - seq", "2*batch");
        normal("1 + seq", "seq + 1");
        normal("(a + 1)*(a - 1)", "a*a - 1");
        normal("batch*seq//seq", "batch");
        normal("(seq + 7)//8", "((seq + 7)//(8))");
        normal("max(seq, seq + 3)", "seq + 3");
        normal("min(seq, min(64, seq))", "min(64, seq)");
        normal("max(max(a, b), b)", "max(a, b)");
    }

    #[test]
    fn what_cannot_be_negative_is_a_size() {
        let size = |text: &str| text.parse::<Dim>().unwrap().is_size();
        assert!(size("2*batch*seq + 3") && size("max(0, seq - 4)") && size("(seq + 7)//8"));
        assert!(!size("seq - 1") && !size("-seq") && !size("min(seq, batch - 1)"));
    }

    #[test]
    fn reshape_division_is_exact_or_none() {
        let n: Dim = "64*batch*seq".parse().unwrap();
        assert_eq!(
            n.exact_div(&"16*seq".parse().unwrap()).unwrap().to_string(),
            "4*batch"
        );
        assert_eq!(n.exact_div(&Dim::sym("heads")), None);
    }

    #[test]
    fn binding_reaches_into_every_term() {
        let dim: Dim = "max(batch, (seq + 1)//2)*3".parse().unwrap();
        let bound = dim.bind(&Bindings::from([("batch".into(), 2), ("seq".into(), 9)]));
        assert_eq!(bound, Some(Dim::Known(15)));
    }
}
