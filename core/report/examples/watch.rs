//! Serves the page of some run folders, prints the address, and ends when its input does: for checks in a
//! browser.
//!
//! `watch RUN…`

#![allow(clippy::print_stdout)]

use diffaug::Result;
use diffaug_report::watch::Watched;
use std::{
    env, io,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

/// Set when the input has ended.
static ENDED: AtomicBool = AtomicBool::new(false);

fn main() -> Result<()> {
    let watched = Watched::new(env::args_os().skip(1).map(Into::into).collect())?;
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        ENDED.store(true, Ordering::SeqCst);
    });
    let ready = |address| println!("http://{address}/");
    watched.serve(0, ready, || ENDED.load(Ordering::SeqCst))
}
