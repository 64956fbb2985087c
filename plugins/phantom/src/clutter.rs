//! What else lies in a bowel and is mistaken for lesions: bubbles, residue, mucus, small ridges.

use crate::{draw::*, film::Film, noise::Noise, shade::*};
use diffaug::rng::Rng;

/// Strews clutter over the picture; none of it belongs to a mask.
pub fn strew(film: &mut Film, inside: impl Fn(f32, f32) -> bool, rng: &mut Rng) {
    let spot = |rng: &mut Rng| [between(rng, -0.9, 0.9), between(rng, -0.9, 0.9)];
    if chance(rng, 0.5) {
        for _ in 0..count(rng, 1, 3) {
            ridge(film, spot(rng), rng);
        }
    }
    if chance(rng, 0.3) {
        mucus(film, spot(rng), rng);
    }
    if chance(rng, 0.35) {
        for _ in 0..count(rng, 1, 2) {
            residue(film, spot(rng), &inside, rng);
        }
    }
    if chance(rng, 0.35) {
        for _ in 0..count(rng, 1, 2) {
            foam(film, spot(rng), &inside, rng);
        }
    }
}

/// A soft bulge of the wall, long or round: light alone, the colour stays.
fn ridge(film: &mut Film, centre: [f32; 2], rng: &mut Rng) {
    let (length, width) = (between(rng, 0.1, 0.4), between(rng, 0.05, 0.14));
    let (sin, cos) = turn(rng).sin_cos();
    let strength = between(rng, 0.1, 0.38);
    let [lx, ly] = [-centre[0] - 0.1, -centre[1] - 0.3];
    let far = crate::shade::length([lx, ly]).max(0.2);
    film.around(centre, 2.2 * (length + width), |x, y, point, _| {
        let (dx, dy) = (x - centre[0], y - centre[1]);
        let along = (dx * cos + dy * sin) / length;
        let across = (dy * cos - dx * sin) / width;
        let square = along * along + across * across;
        if square < 4.0 {
            let bump = (1.0 - square / 4.0) * (1.0 - square / 4.0);
            // The side that looks to the lamp gains what the other loses.
            let slope = (along * cos / length - across * sin / width) * lx
                + (along * sin / length + across * cos / width) * ly;
            let lit = (slope * width / far).clamp(-1.2, 1.2);
            point.light *= 1.0 + strength * bump * (0.35 + lit);
        }
    });
}

/// A translucent film of mucus.
fn mucus(film: &mut Film, centre: [f32; 2], rng: &mut Rng) {
    let radius = between(rng, 0.2, 0.45);
    let noise = Noise::new(seed(rng));
    let strength = between(rng, 0.15, 0.4);
    film.around(centre, radius, |x, y, point, _| {
        let away = length([x - centre[0], y - centre[1]]) / radius;
        let patch = noise.fractal(x * 4.0, y * 4.0, 3) * 1.6 + 0.5 - away;
        let cover = strength * step(0.0, 0.7, patch);
        point.albedo = mix(point.albedo, [0.86, 0.74, 0.46], cover);
    });
}

/// A few specks of yellow or brown residue.
fn residue(film: &mut Film, centre: [f32; 2], inside: &impl Fn(f32, f32) -> bool, rng: &mut Rng) {
    let colour = one_of(
        rng,
        [[0.72, 0.56, 0.18], [0.50, 0.34, 0.14], [0.62, 0.55, 0.26]],
    );
    let spread_out = between(rng, 0.08, 0.3);
    for _ in 0..count(rng, 2, 12) {
        let place = [0, 1].map(|k| centre[k] + between(rng, -1.0, 1.0) * spread_out);
        let radius = spread(rng, 0.012, 0.05);
        let noise = Noise::new(seed(rng));
        if inside(place[0], place[1]) {
            continue;
        }
        film.around(place, 1.6 * radius, |x, y, point, _| {
            let (dx, dy) = ((x - place[0]) / radius, (y - place[1]) / radius);
            let level = length([dx, dy]) + 0.7 * noise.value(dx * 1.3, dy * 1.3);
            let cover = step(1.05, 0.75, level);
            point.albedo = mix(point.albedo, colour, 0.9 * cover);
            point.light *= 1.0 - 0.25 * cover * (0.4 + dx * 0.4 + dy * 0.6).clamp(-0.4, 1.0);
            point.light *= 1.0 - 0.25 * step(1.5, 1.1, level) * (1.0 - cover);
            point.gloss *= 1.0 - cover;
        });
    }
}

/// A group of bubbles: dark rims, a bright crescent, a spot of the lamp.
fn foam(film: &mut Film, centre: [f32; 2], inside: &impl Fn(f32, f32) -> bool, rng: &mut Rng) {
    let spread_out = between(rng, 0.04, 0.16);
    for _ in 0..count(rng, 2, 9) {
        let place = [0, 1].map(|k| centre[k] + between(rng, -1.0, 1.0) * spread_out);
        let radius = spread(rng, 0.015, 0.06);
        if inside(place[0], place[1]) {
            continue;
        }
        film.around(place, 1.1 * radius, |x, y, point, _| {
            let (dx, dy) = ((x - place[0]) / radius, (y - place[1]) / radius);
            let level = length([dx, dy]);
            if level > 1.1 {
                return;
            }
            let rim = step(0.7, 0.95, level) * step(1.1, 1.0, level);
            point.light *= 1.0 - 0.3 * rim;
            let crescent = rim * step(0.2, 0.9, dx * 0.5 + dy * 0.8);
            let spark = step(0.3, 0.16, length([dx + 0.35, dy + 0.4]));
            point.gloss = point.gloss.max(0.22 * crescent + 0.9 * spark);
        });
    }
}
