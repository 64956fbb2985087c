//! What a reader of the figures has to know, in words.

use crate::points::Points;

/// As many images as Frechet distances are published for at least; with fewer the bias is large.
const ENOUGH: usize = 2048;

/// How many images there were: `12 synthetic and 30 real images`.
pub fn counts(synthetic: usize, real: usize) -> String {
    format!("{synthetic} synthetic and {real} real images")
}

/// The end of a note where images without a lesion were left out, or nothing.
pub fn left_out(counted: usize, of: usize) -> String {
    match of - counted {
        0 => String::new(),
        1 => "; 1 image without a lesion was left out".to_owned(),
        n => format!("; {n} images without a lesion were left out"),
    }
}

/// How far the number of images biases a distance of distributions.
pub fn bias(real: &Points, synthetic: &Points) -> String {
    let fewest = real.len().min(synthetic.len());
    match fewest {
        0 | 1 => "; with fewer than 2 images on a side there is no distance".to_owned(),
        n if n < ENOUGH => format!(
            "; below {ENOUGH} images the distance depends on how many there are, so compare it at equal numbers alone, and beside that of two halves of the real images ({} each)",
            real.len() / 2
        ),
        _ => format!(
            "; two halves of the real images ({} each) say what distance comes of their number alone",
            real.len() / 2
        ),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::features;

    #[test]
    fn notes_tell_numbers_and_bias() {
        assert_eq!(counts(3, 9), "3 synthetic and 9 real images");
        assert_eq!(left_out(5, 5), "");
        assert!(left_out(4, 5).contains("1 image without"));
        assert!(left_out(2, 5).contains("3 images without"));
        let points = |count| features(count, 1, 1);
        assert!(bias(&points(9), &points(1)).contains("there is no distance"));
        assert!(bias(&points(9), &points(4)).contains("below 2048"));
        assert!(bias(&points(9), &points(4)).contains("(4 each)"));
        assert!(!bias(&points(2048), &points(3000)).contains("below"));
    }
}
