//! The page of a run: left by a run, written and served by commands.

use crate::{pipeline::tiny, util::Sandbox};
use diffaug::image::image_size;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::Stdio,
};

/// The data of the gallery of a page.
fn data(page: &str) -> serde_json::Value {
    let (_, rest) = page
        .split_once("<script type=\"application/json\">")
        .unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

#[test]
fn a_run_leaves_its_page_and_a_picture_of_every_candidate() {
    let sandbox = tiny();
    sandbox.run("run m.toml -q").ok();
    let page = sandbox.read("runs/tiny/report.html");
    let mut records = sandbox.read_lines("runs/tiny/synthetic/metadata.jsonl");
    records.extend(sandbox.read_lines("runs/tiny/rejected.jsonl"));
    records.retain(|record| record["skipped"] != true);
    let cards = data(&page)["cards"].as_array().unwrap().clone();
    assert_eq!(cards.len(), records.len());
    assert!(cards.iter().any(|card| card["verdict"] == "rejected"));
    let checksums = sandbox.read("runs/tiny/synthetic.sha256");
    for card in cards {
        let name = format!(
            "synthetic/gallery/{:06}.jpg",
            card["index"].as_u64().unwrap()
        );
        let path = sandbox.path(&format!("runs/tiny/{name}"));
        assert_eq!(image_size(&path).unwrap(), (4 * 96, 96));
        assert!(checksums.contains(&name), "{name}");
        let picture = card["picture"].as_str().unwrap();
        assert!(
            picture.starts_with("data:image/jpeg;base64,"),
            "{picture:.60}"
        );
    }
    // What trainings log is read; the judge is the training on real images as well.
    for curve in ["segmenter: loss", "evaluate/augmented: loss"] {
        assert!(page.contains(curve), "{curve}");
    }
    assert!(page.contains("<polyline"));
    let written = sandbox.run("report runs/tiny").ok();
    assert_eq!(written.stdout, "report.html\n");
    assert_eq!(sandbox.read("report.html"), page);
    // Nothing is left to do, and the page comes out the same.
    std::fs::remove_file(sandbox.path("runs/tiny/report.html")).unwrap();
    sandbox.run("run m.toml -q").ok();
    assert_eq!(sandbox.read("runs/tiny/report.html"), page);
}

#[test]
fn only_the_first_candidates_have_pictures() {
    let sandbox = tiny();
    for (count, output) in [(3, "some"), (0, "none")] {
        let set = format!("--set synthesis.gallery={count} --set output=runs/{output}");
        sandbox.run(&format!("generate m.toml -q {set}")).ok();
        let files = sandbox.files(&format!("runs/{output}"), &[]);
        let kept = files
            .keys()
            .filter(|name| name.starts_with("synthetic/gallery/"));
        assert_eq!(kept.count(), count, "{output}");
    }
    // Another number paints nothing anew: the two share what was painted.
    let painted = sandbox.files("runs/.steps", &[]);
    let pools = painted
        .keys()
        .filter(|name| name.ends_with("images.sha256"));
    assert_eq!(pools.count(), 1);
}

#[test]
fn pages_of_runs_that_lack_something_say_so() {
    let sandbox = tiny();
    sandbox.run("generate m.toml -q").ok();
    sandbox.run("report runs/tiny -o page.html").ok();
    assert!(
        sandbox
            .read("page.html")
            .contains("the run is not finished")
    );
    sandbox
        .run("run m.toml -q --set synthesis.ratio=0 --set output=runs/base")
        .ok();
    let page = sandbox.read("runs/base/report.html");
    assert!(page.contains("nothing is painted in this run"));
    sandbox.run("report runs/tiny runs/base -o both.html").ok();
    assert!(sandbox.read("both.html").contains("id=\"comparison\""));
    sandbox
        .run("report runs")
        .refused("`runs` is no folder of a run: it has no lock.json");
    sandbox
        .run("report runs/tiny -o nowhere/page.html")
        .refused("there is no folder `nowhere`");
    sandbox.run("watch runs").refused("is no folder of a run");
}

fn ask(address: &str, host: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
#[cfg(unix)]
fn a_run_is_watched_until_it_is_interrupted() {
    let sandbox: Sandbox = tiny();
    sandbox.run("generate m.toml -q").ok();
    let mut command = sandbox.command("watch runs/tiny -q");
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = line.trim().strip_prefix("http://").unwrap();
    let address = address.strip_suffix('/').unwrap();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    let answer = ask(address, address);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("the run is not finished"));
    assert!(ask(address, "evil.example").starts_with("HTTP/1.1 403"));
    crate::util::interrupt(&child);
    assert!(child.wait().unwrap().success());
}
