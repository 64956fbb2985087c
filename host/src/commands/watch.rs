//! `diffaug watch`: the page of runs, served to browsers of this machine while they go on.

use crate::{cli::WatchArgs, ui::Ui};
use diffaug_report::watch::Watched;
use diffaug_run::{failure::Failure, session::Monitor};
use serde_json::json;
use std::net::SocketAddr;

/// Prints the address and serves the page until Ctrl-C, which is how it is meant to end.
pub fn watch(args: &WatchArgs, ui: Ui) -> Result<(), Failure> {
    let watched = Watched::new(args.runs.clone())?;
    let ready = |address: SocketAddr| {
        let address = format!("http://{address}/");
        ui.result(|| address.clone(), &json!({ "address": address }));
        ui.say("press Ctrl-C to end");
    };
    Ok(watched.serve(args.port, ready, || ui.stopped())?)
}
