//! Arithmetic of vectors, colours and curves that every painter uses.

/// A vector, or red, green and blue.
pub type Vec3 = [f32; 3];

/// Hermite ease from 0 to 1 over a fraction `t` of 0 to 1.
pub fn smooth(t: f32) -> f32 {
    t * t * (3.0 - 2.0 * t)
}

/// 0 below `from`, 1 above `to` (or the reverse where `from` is the larger), smooth between.
pub fn step(from: f32, to: f32, x: f32) -> f32 {
    smooth(((x - from) / (to - from)).clamp(0.0, 1.0))
}

/// `a` at `t` = 0, `b` at `t` = 1.
pub fn lerp(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

/// [`lerp`] for each component.
pub fn mix(a: Vec3, b: Vec3, t: f32) -> Vec3 {
    [0, 1, 2].map(|k| lerp(a[k], b[k], t))
}

/// Product for each component.
pub fn tint(a: Vec3, b: Vec3) -> Vec3 {
    [0, 1, 2].map(|k| a[k] * b[k])
}

/// `a` times a number.
pub fn scale(a: Vec3, factor: f32) -> Vec3 {
    a.map(|v| v * factor)
}

/// Sum.
pub fn add(a: Vec3, b: Vec3) -> Vec3 {
    [0, 1, 2].map(|k| a[k] + b[k])
}

/// Scalar product.
pub fn dot(a: Vec3, b: Vec3) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// The vector of length 1 in the same direction.
pub fn normal(a: Vec3) -> Vec3 {
    scale(a, 1.0 / dot(a, a).sqrt().max(1e-9))
}

/// Length of a vector in the image plane.
pub fn length(a: [f32; 2]) -> f32 {
    (a[0] * a[0] + a[1] * a[1]).sqrt()
}

/// Perceived brightness of a colour (ITU-R BT.601).
pub fn luma(rgb: Vec3) -> f32 {
    0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
}

/// A camera's shoulder: straight up to 0.62, then ever slower towards 1.
pub fn shoulder(x: f32) -> f32 {
    const KNEE: f32 = 0.62;
    if x <= KNEE {
        return x.max(0.0);
    }
    let over = (x - KNEE) / (1.0 - KNEE);
    KNEE + (1.0 - KNEE) * over / (1.0 + over)
}

/// Angle of a direction in -pi to pi, within 0.0003: a polynomial, since the library's own
/// arc tangent is slow and differs between platforms.
pub fn angle(x: f32, y: f32) -> f32 {
    use std::f32::consts::{FRAC_PI_2, PI};
    let (ax, ay) = (x.abs(), y.abs());
    let large = ax.max(ay);
    if large == 0.0 {
        return 0.0;
    }
    let t = ax.min(ay) / large;
    let s = t * t;
    let core =
        t * (0.999_866 + s * (-0.330_299_5 + s * (0.180_141 + s * (-0.085_133 + s * 0.020_835_1))));
    let first = if ay > ax { FRAC_PI_2 - core } else { core };
    let upper = if x < 0.0 { PI - first } else { first };
    if y < 0.0 { -upper } else { upper }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arc_tangent_is_close() {
        for i in 0..360 {
            let (y, x) = (i as f32).to_radians().sin_cos();
            let error = (angle(x, y) - y.atan2(x)).abs();
            assert!(error < 3e-4 || (error - std::f32::consts::TAU).abs() < 3e-4);
        }
        assert_eq!(angle(0.0, 0.0), 0.0);
    }

    #[test]
    fn the_shoulder_is_continuous_and_below_one() {
        assert!((shoulder(0.6201) - 0.6201).abs() < 1e-4);
        assert!(shoulder(50.0) < 1.0);
        assert_eq!(shoulder(-1.0), 0.0);
    }
}
