//! Settings, and what goes before a cluster runs and after.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::crash::{check, load};
use crate::support::{Dev, HALFMOON, PATIENCE, Scratch, Shared, block_on, halfmoon, text};

/// `halfmoon config` with a file, nothing but this in the environment, and arguments.
fn config(file: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    Command::new(HALFMOON)
        .env_clear()
        .envs(environment.iter().copied())
        .arg("--config")
        .arg(file)
        .arg("config")
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn a_setting_comes_from_flag_environment_file_or_default_in_that_order() {
    let scratch = Scratch::new();
    let file = scratch.path("config.toml");
    let text_of = "port = 1\nengines = 3\nsegment_mib = 5\ndata_dir = \"data\"\n";
    std::fs::write(&file, text_of).unwrap();
    let environment = [("HALFMOON_PORT", "2"), ("HALFMOON_ENGINES", "4")];
    let output = config(&file, &environment, &["--port", "6", "--json"]);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["file"], json!({"path": file, "found": true}));
    let setting = |name: &str| shown["settings"][name].clone();
    assert_eq!(setting("port"), json!({"value": 6, "from": "flag"}));
    assert_eq!(setting("engines"), json!({"value": 4, "from": "environment"}));
    assert_eq!(setting("segment_mib"), json!({"value": 5, "from": "file"}));
    assert_eq!(setting("durability"), json!({"value": "flush", "from": "default"}));
    let data = scratch.path("data");
    assert_eq!(setting("data_dir"), json!({"value": data, "from": "file"}));
    let output = config(&file, &environment, &["--port", "6"]);
    let shown = text(&output.stdout);
    for part in ["--port", "HALFMOON_ENGINES", "default", file.to_str().unwrap()] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
}

#[test]
fn a_wrong_file_is_named_with_the_line_and_what_is_allowed() {
    let scratch = Scratch::new();
    let file = scratch.path("config.toml");
    std::fs::write(&file, "engines = 2\nprot = 1\n").unwrap();
    let output = config(&file, &[], &[]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    for part in [file.to_str().unwrap(), "line 2", "prot", "`port`", "`data_dir`"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let missing = scratch.path("missing.toml");
    let said = text(&config(&missing, &[], &[]).stderr);
    assert!(said.contains("missing.toml") && said.contains("cannot read"), "{said}");
    let said = text(&config(&file, &[("HALFMOON_PORT", "many")], &[]).stderr);
    assert!(said.contains("many") && said.contains("--port"), "{said}");
}

#[test]
fn the_usual_file_is_read_when_it_is_there() {
    let scratch = Scratch::new();
    let home = scratch.path("home");
    let shown = |home: &Path| {
        let mut command = Command::new(HALFMOON);
        let output = command.env_clear().env("HOME", home).args(["config", "--json"]).output();
        serde_json::from_slice::<Value>(&output.unwrap().stdout).unwrap()
    };
    assert_eq!(shown(&home)["file"]["found"], json!(false));
    let directory = home.join(".config/halfmoon");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("config.toml"), "port = 7\n").unwrap();
    assert_eq!(shown(&home)["settings"]["port"], json!({"value": 7, "from": "file"}));
}

#[test]
fn a_cluster_runs_as_its_file_says_and_commands_find_it_there() {
    let scratch = Scratch::new();
    let file = scratch.path("config.toml");
    std::fs::write(&file, "engines = 1\nport = 0\ndata_dir = \"data\"\nlog = \"debug\"\n").unwrap();
    let mut command = Command::new(HALFMOON);
    command.arg("--config").arg(&file);
    let dev = Dev::start_by(command, &scratch.path("data"), &[]);
    assert_eq!(dev.engines.len(), 1);
    dev.until_said("DEBUG");
    let output = halfmoon(&["--config", file.to_str().unwrap(), "status", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    // A directory that is named on the command line wins over a server in a file.
    std::fs::write(&file, "server = \"127.0.0.1:1\"\n").unwrap();
    let data = scratch.path("data");
    let data = data.to_str().unwrap();
    let output = halfmoon(&["--config", file.to_str().unwrap(), "status", "--data-dir", data]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_port_in_use_is_named_before_anything_is_started() {
    let scratch = Scratch::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let data = scratch.path("data");
    let output = halfmoon(&["dev", "--port", &port, "--data-dir", data.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains(&port) && said.contains("in use") && said.contains("--port"), "{said}");
    assert!(!data.join("storage-1").exists(), "no node was started");
    let output = halfmoon(&["dev", "--port", "65535", "--data-dir", data.to_str().unwrap()]);
    assert!(text(&output.stderr).contains("lower --port"), "{}", text(&output.stderr));
}

#[test]
fn a_second_cluster_in_a_directory_is_refused_and_the_first_is_not_harmed() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let dev = Dev::start(&data);
    dev.deploy(HALFMOON);
    let output = halfmoon(&["dev", "--port", "0", "--data-dir", data.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("another cluster runs in") && said.contains("--data-dir"), "{said}");
    block_on(async {
        assert_eq!(dev.result("order", &json!({"id": "a"}), None).await, json!(1));
    });
}

#[test]
fn everything_acknowledged_is_there_after_an_orderly_stop_under_load() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let acknowledged: Shared<BTreeSet<String>> = Arc::new(Mutex::new(BTreeSet::new()));
    // To the command alone, and to all its processes at once, as a service manager or a terminal
    // sends it.
    for (round, signal, to_all) in
        [(0, Signal::TERM, false), (1, Signal::TERM, true), (2, Signal::INT, true)]
    {
        let dev = Dev::start(&data);
        if round == 0 {
            dev.deploy(HALFMOON);
        }
        block_on(async {
            check(&dev, &acknowledged).await;
            let warm = Notify::new();
            tokio::select! {
                () = load(&dev, round, &acknowledged, &warm) => {}
                () = warm.notified() => {}
            }
            let kill = if to_all { kill_process_group } else { kill_process };
            kill(dev.pid(), signal).unwrap();
            // Requests go on while the cluster stops.
            load(&dev, round + 100, &acknowledged, &warm).await;
        });
        assert!(dev.ended_well(), "round {round}");
    }
    let dev = Dev::start(&data);
    block_on(check(&dev, &acknowledged));
}

/// A socket on which a service manager would listen.
fn manager() -> (tempfile::TempDir, UnixDatagram, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    (directory, socket, path.to_str().unwrap().to_owned())
}

fn heard(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 64];
    let len = socket.recv(&mut bytes).unwrap();
    text(&bytes[..len])
}

#[test]
fn a_service_manager_is_told_when_a_cluster_or_a_node_is_ready_and_when_it_stops() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let (_directory, socket, path) = manager();
    let mut command = Command::new(HALFMOON);
    command.env("NOTIFY_SOCKET", &path);
    let dev = Dev::start_by(command, &data, &[]);
    assert_eq!(heard(&socket), "READY=1");
    assert!(dev.stop());
    assert_eq!(heard(&socket), "STOPPING=1");
    let mut nodes = Nodes(Vec::new());
    for (role, node) in [("storage", "1"), ("storage", "2"), ("sequencer", "10")] {
        let child = Command::new(HALFMOON)
            .env("NOTIFY_SOCKET", &path)
            .args(["run", "--role", role, "--node", node, "--meta"])
            .arg(data.join("meta"))
            .arg("--data-dir")
            .arg(data.join(format!("{role}-{node}")))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        nodes.0.push(child);
        assert_eq!(heard(&socket), "READY=1");
    }
    while let Some(child) = nodes.0.last_mut() {
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(heard(&socket), "STOPPING=1");
        nodes.0.pop();
    }
}

/// Processes that do not outlive the test.
struct Nodes(Vec<Child>);

impl Drop for Nodes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
