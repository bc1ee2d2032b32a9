//! Two gradients of one parameter, and what finite differences say of them.

use serde::Serialize;

/// The largest difference at which two gradients agree, as a share of the largest entry.
pub const AGREE: f64 = 1e-5;

/// The error at which finite differences agree with a gradient, as a share of its norm.
const NEAR: f64 = 1e-4;

/// The error beyond which they say nothing.
const VAGUE: f64 = 1e-2;

/// The share of the difference of two gradients within which finite differences are on the side of one.
const SIDE: f64 = 0.1;

/// How far two gradients are apart.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Apart {
    /// The largest difference of two entries, as a share of the largest entry.
    pub difference: f64,
    /// The multiple of ours that is nearest to the given one; `None` where ours is zero.
    pub factor: Option<f64>,
    /// What that multiple leaves, as a share of the given one's norm.
    pub rest: f64,
    /// Whether both are zero, which any factor would leave so.
    pub zero: bool,
}

/// Which of two gradients finite differences agree with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Both,
    Given,
    Ours,
    Neither,
    Unclear,
}

/// A derivative of the loss along a direction, and how exact it is.
#[derive(Clone, Copy, Debug)]
pub struct Slope {
    pub value: f64,
    pub error: f64,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The Euclidean norm.
pub fn norm(x: &[f64]) -> f64 {
    dot(x, x).sqrt()
}

/// The largest absolute value; a NaN if there is one.
fn largest(x: impl Iterator<Item = f64>) -> f64 {
    x.fold(0.0, |most, x| if x.abs() <= most { most } else { x.abs() })
}

fn finite(x: &[f64]) -> bool {
    x.iter().all(|x| x.is_finite())
}

impl Apart {
    /// Compares a given gradient with ours.
    pub fn new(given: &[f64], ours: &[f64]) -> Self {
        let pairs = || given.iter().zip(ours);
        let most = largest(given.iter().chain(ours).copied());
        let zero = most == 0.0;
        let factor = (norm(ours) > 0.0).then(|| dot(given, ours) / dot(ours, ours));
        let rest: Vec<f64> = pairs()
            .map(|(g, o)| g - factor.unwrap_or(0.0) * o)
            .collect();
        let share = |part: f64, whole: f64| if whole == 0.0 { 0.0 } else { part / whole };
        Apart {
            difference: share(largest(pairs().map(|(g, o)| g - o)), most),
            factor,
            rest: share(norm(&rest), norm(given)),
            zero,
        }
    }

    /// Whether they are the same but for rounding. Numbers that are not finite are not.
    pub fn agree(&self) -> bool {
        self.difference <= AGREE
    }
}

/// The direction of length one along which to differentiate: half of it tells the two gradients apart, or follows them where
/// they agree; the other half is spread over all entries, and sees what both lack.
pub fn direction(given: &[f64], ours: &[f64]) -> Vec<f64> {
    let apart: Vec<f64> = match Apart::new(given, ours).agree() {
        true => ours.to_vec(),
        false => given.iter().zip(ours).map(|(g, o)| g - o).collect(),
    };
    let telling = [&apart[..], ours]
        .into_iter()
        .find(|x| finite(x) && norm(x) > 0.0);
    let telling: Vec<f64> = match telling {
        Some(x) => x.iter().map(|n| n / norm(x)).collect(),
        None => vec![0.0; ours.len()],
    };
    let each = (ours.len() as f64).sqrt().recip();
    // Fibonacci hashing gives every entry a sign.
    let sign = |i: usize| match (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 {
        0 => each,
        _ => -each,
    };
    let both: Vec<f64> = telling
        .iter()
        .enumerate()
        .map(|(i, x)| x + sign(i))
        .collect();
    let length = norm(&both);
    match length > SIDE {
        true => both.iter().map(|x| x / length).collect(),
        // The two halves cancel.
        false => telling,
    }
}

impl Verdict {
    /// What the slope of the loss along a direction says.
    pub fn new(given: &[f64], ours: &[f64], direction: &[f64], slope: Slope) -> Self {
        let scale = largest(
            [norm(given), norm(ours)]
                .into_iter()
                .filter(|n| n.is_finite()),
        );
        let (along_given, along_ours) = (dot(given, direction), dot(ours, direction));
        let off = |along: f64| (slope.value - along).abs();
        if Apart::new(given, ours).agree() {
            return match off(along_ours) <= NEAR * scale + 3.0 * slope.error {
                // An error that large would let anything pass.
                true if scale > 0.0 && slope.error > VAGUE * scale => Verdict::Unclear,
                true => Verdict::Both,
                false if slope.value.is_finite() => Verdict::Neither,
                false => Verdict::Unclear,
            };
        }
        let gap = (along_given - along_ours).abs();
        let near = match gap.is_finite() {
            true => SIDE * gap,
            false => NEAR * scale,
        };
        if !slope.value.is_finite() || !(3.0 * slope.error <= near) {
            return Verdict::Unclear;
        }
        match (off(along_given) <= near, off(along_ours) <= near) {
            (true, _) => Verdict::Given,
            (_, true) => Verdict::Ours,
            _ => Verdict::Neither,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUE: [f64; 4] = [1.0, -2.0, 0.5, 0.0];

    fn verdict(given: &[f64], ours: &[f64], error: f64) -> Verdict {
        let direction = direction(given, ours);
        assert!((norm(&direction) - 1.0).abs() < 1e-12);
        let value = dot(&TRUE, &direction);
        Verdict::new(given, ours, &direction, Slope { value, error })
    }

    #[test]
    fn the_one_that_is_true_is_found() {
        let half = TRUE.map(|x| 0.5 * x);
        let turned = [1.0, -2.0, 0.5, 0.3];
        for wrong in [half, TRUE.map(|x| -x), [0.0; 4], turned, [f64::NAN; 4]] {
            assert_eq!(verdict(&wrong, &TRUE, 1e-9), Verdict::Ours, "{wrong:?}");
            assert_eq!(verdict(&half, &wrong, 1.0), Verdict::Unclear, "{wrong:?}");
            if wrong[0].is_finite() {
                assert_eq!(verdict(&TRUE, &wrong, 1e-9), Verdict::Given, "{wrong:?}");
                assert_eq!(verdict(&wrong, &wrong, 1e-9), Verdict::Neither, "{wrong:?}");
            }
        }
        assert_eq!(verdict(&TRUE, &TRUE, 1e-9), Verdict::Both);
        assert_eq!(verdict(&half, &turned, 1e-9), Verdict::Neither);
    }

    #[test]
    fn a_factor_is_told_from_another_direction() {
        let half = Apart::new(&TRUE.map(|x| 0.5 * x), &TRUE);
        assert_eq!(
            (half.difference, half.factor, half.rest),
            (0.5, Some(0.5), 0.0)
        );
        let flipped = Apart::new(&TRUE.map(|x| -x), &TRUE);
        assert_eq!((flipped.difference, flipped.factor), (2.0, Some(-1.0)));
        let zeroed = Apart::new(&[0.0; 4], &TRUE);
        assert_eq!((zeroed.difference, zeroed.factor), (1.0, Some(0.0)));
        let turned = Apart::new(&[0.0, 0.0, 0.0, 1.0], &TRUE);
        assert_eq!((turned.factor, turned.rest), (Some(0.0), 1.0));
        assert_eq!(Apart::new(&TRUE, &[0.0; 4]).factor, None);
        assert!(!Apart::new(&[f64::NAN, 0.0, 0.0, 0.0], &TRUE).agree());
        let none = Apart::new(&[0.0; 4], &[0.0; 4]);
        assert!(none.zero && none.agree());
    }
}
