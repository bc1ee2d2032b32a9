//! Two gradients of one parameter, and what finite differences say of them.

use serde::Serialize;

/// The largest difference at which two gradients agree, as a share of the largest entry.
pub const AGREE: f64 = 1e-5;

/// The error at which finite differences agree with a gradient, as a share of its norm.
const NEAR: f64 = 1e-4;

/// The error beyond which they say nothing.
const VAGUE: f64 = 1e-2;

/// What is rounding, as a share of the largest entry of any gradient: some gradients are zero but for that, such as that of the
/// bias of attention's keys.
const ROUNDING: f64 = 1e-10;

/// The share of the difference of two gradients beyond which finite differences are on the side of neither.
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

/// What entries are to be taken for zero beside these gradients.
pub fn rounding<'g>(gradients: impl Iterator<Item = &'g Vec<f64>>) -> f64 {
    let finite = gradients.flatten().copied().filter(|x| x.is_finite());
    ROUNDING * largest(finite)
}

impl Apart {
    /// Compares a given gradient with ours, where entries up to `rounding` are as good as zero.
    pub fn new(given: &[f64], ours: &[f64], rounding: f64) -> Self {
        let pairs = || given.iter().zip(ours);
        let most = largest(given.iter().chain(ours).copied());
        if most <= rounding {
            return Apart {
                difference: 0.0,
                factor: None,
                rest: 0.0,
                zero: true,
            };
        }
        let factor = largest(ours.iter().copied()) > rounding;
        let factor = factor.then(|| dot(given, ours) / dot(ours, ours));
        let rest: Vec<f64> = pairs()
            .map(|(g, o)| g - factor.unwrap_or(0.0) * o)
            .collect();
        let length = norm(given);
        Apart {
            difference: largest(pairs().map(|(g, o)| g - o)) / most,
            factor,
            rest: if length == 0.0 {
                0.0
            } else {
                norm(&rest) / length
            },
            zero: false,
        }
    }

    /// Whether they are the same but for rounding. Numbers that are not finite are not.
    pub fn agree(&self) -> bool {
        self.difference <= AGREE
    }

    /// The direction of length one along which to differentiate: half of it tells the two gradients apart, or follows them
    /// where they agree; the other half is spread over all entries, and sees what both lack.
    pub fn direction(&self, given: &[f64], ours: &[f64]) -> Vec<f64> {
        let telling: Vec<f64> = match self.agree() {
            true => ours.to_vec(),
            false => given.iter().zip(ours).map(|(g, o)| g - o).collect(),
        };
        let telling = [&telling[..], ours]
            .into_iter()
            .map(|x| (x, norm(x)))
            .find(|(_, length)| length.is_finite() && *length > 0.0);
        let telling: Vec<f64> = match telling {
            Some((x, length)) => x.iter().map(|n| n / length).collect(),
            None => vec![0.0; ours.len()],
        };
        let each = (ours.len() as f64).sqrt().recip();
        // Fibonacci hashing gives every entry a sign.
        let sign = |i: usize| match (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 {
            0 => each,
            _ => -each,
        };
        let both = telling.iter().enumerate().map(|(i, x)| x + sign(i));
        let both: Vec<f64> = both.collect();
        let length = norm(&both);
        match length > SIDE {
            true => both.iter().map(|x| x / length).collect(),
            // The two halves cancel.
            false => telling,
        }
    }

    /// What the slope of the loss along a direction says of the two gradients.
    pub fn verdict(&self, given: &[f64], ours: &[f64], direction: &[f64], slope: Slope) -> Verdict {
        let scale = match self.zero {
            true => 0.0,
            false => largest(
                [norm(given), norm(ours)]
                    .into_iter()
                    .filter(|n| n.is_finite()),
            ),
        };
        let (along_given, along_ours) = (dot(given, direction), dot(ours, direction));
        let off = |along: f64| (slope.value - along).abs();
        let error = 3.0 * slope.error;
        if self.agree() {
            return match off(along_ours) <= NEAR * scale + error {
                // With such an error anything would do.
                true if scale > 0.0 && error > VAGUE * scale => Verdict::Unclear,
                true => Verdict::Both,
                false if slope.value.is_finite() => Verdict::Neither,
                false => Verdict::Unclear,
            };
        }
        let gap = (along_given - along_ours).abs();
        // Where one is not finite, any slope tells them apart.
        let side = if gap.is_finite() {
            SIDE * gap
        } else {
            VAGUE * scale
        };
        if !slope.value.is_finite() || error.is_nan() || error > side {
            return Verdict::Unclear;
        }
        let near = (NEAR * scale + error).min(side);
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
        let apart = Apart::new(given, ours, 1e-10);
        let direction = apart.direction(given, ours);
        assert!((norm(&direction) - 1.0).abs() < 1e-12);
        let value = dot(&TRUE, &direction);
        apart.verdict(given, ours, &direction, Slope { value, error })
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
        let apart = |given: &[f64], ours: &[f64]| Apart::new(given, ours, 1e-10);
        let half = apart(&TRUE.map(|x| 0.5 * x), &TRUE);
        assert_eq!(
            (half.difference, half.factor, half.rest),
            (0.5, Some(0.5), 0.0)
        );
        let flipped = apart(&TRUE.map(|x| -x), &TRUE);
        assert_eq!((flipped.difference, flipped.factor), (2.0, Some(-1.0)));
        let zeroed = apart(&[0.0; 4], &TRUE);
        assert_eq!((zeroed.difference, zeroed.factor), (1.0, Some(0.0)));
        let turned = apart(&[0.0, 0.0, 0.0, 1.0], &TRUE);
        assert_eq!((turned.factor, turned.rest), (Some(0.0), 1.0));
        assert_eq!(apart(&TRUE, &[0.0; 4]).factor, None);
        assert!(!apart(&[f64::NAN, 0.0, 0.0, 0.0], &TRUE).agree());
        let rounded = apart(&[1e-12, 0.0, 0.0, 0.0], &[0.0, 1e-12, 0.0, 0.0]);
        assert!(rounded.zero && rounded.agree());
    }
}
