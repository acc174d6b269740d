//! What users do all day.

use serde_json::json;

use crate::support::{Dev, HALFMOON, Scratch, block_on, halfmoon, text};

#[test]
fn a_cluster_comes_up_runs_functions_and_stops_when_asked() {
    let scratch = Scratch::new();
    let dev = Dev::start(&scratch.path("data"));
    dev.deploy(HALFMOON);
    let server = dev.server();
    let output = halfmoon(&["functions", "--server", &server]);
    assert!(text(&output.stdout).contains("frontend"), "{}", text(&output.stdout));
    let output = halfmoon(&["invoke", "populate", r#"{"part":0}"#, "--server", &server]);
    assert_eq!(text(&output.stdout), "0\n", "{}", text(&output.stderr));
    let output = halfmoon(&["invoke", "geo", r#"{"lat":37.7,"lon":-122.5}"#, "--server", &server]);
    assert_eq!(text(&output.stdout), "[0,1,10,11,20]\n", "{}", text(&output.stderr));
    let output = halfmoon(&["status", "--server", &server, "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(status.get("durability").is_some(), "{status}");
    assert!(dev.stop());
}

#[test]
fn state_and_functions_are_there_after_an_orderly_restart() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    block_on(async {
        let dev = Dev::start(&data);
        dev.deploy(HALFMOON);
        assert_eq!(dev.result("order", &json!({"id": "a"}), Some("a")).await, json!(1));
        assert!(dev.stop());
        let dev = Dev::start(&data);
        assert_eq!(dev.result("order", &json!({"id": "a"}), Some("b")).await, json!(2));
        assert!(dev.stop());
    });
}

#[test]
fn a_key_makes_many_requests_one_call() {
    let scratch = Scratch::new();
    let dev = Dev::start(&scratch.path("data"));
    dev.deploy(HALFMOON);
    block_on(async {
        for _ in 0..3 {
            assert_eq!(dev.result("order", &json!({"id": "x"}), Some("one")).await, json!(1));
        }
        assert_eq!(dev.result("order", &json!({"id": "x"}), None).await, json!(2));
        let reply = dev.invoke("order", &json!({"id": "other"}), Some("one")).await.unwrap();
        assert!(reply.status.is_client_error(), "another input under the same key: {reply:?}");
    });
}

#[test]
fn a_read_only_workflow_appends_nothing() {
    let scratch = Scratch::new();
    let dev = Dev::start(&scratch.path("data"));
    dev.deploy(HALFMOON);
    block_on(async {
        for part in 0..8 {
            dev.result("populate", &json!({ "part": part }), None).await;
        }
        let search = json!({"op": "search", "lat": 37.7, "lon": -122.5});
        for _ in 0..5 {
            let reply = dev.invoke("frontend", &search, None).await.unwrap();
            assert_eq!(reply.status, 200, "{}", text(&reply.body));
            assert_eq!(reply.header("halfmoon-appends"), Some("0"));
        }
    });
}

#[test]
fn all_roles_run_in_one_process_too() {
    let scratch = Scratch::new();
    let dev = Dev::start_with(&scratch.path("data"), &["--in-process"]);
    dev.deploy(HALFMOON);
    block_on(async {
        assert_eq!(dev.result("order", &json!({"id": "a"}), None).await, json!(1));
    });
    assert!(dev.stop());
}
