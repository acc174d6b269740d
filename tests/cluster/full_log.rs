//! The tables of the log are full.

use serde_json::json;

use crate::support::{Dev, HALFMOON, Scratch, block_on};

/// More than the smallest tables have room for.
const ORDERS_MAX: u64 = 20_000;

#[test]
fn a_full_log_refuses_what_is_new_with_429_and_loses_nothing() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    block_on(async {
        let dev = Dev::start_with(&data, &["--log-table-mib", "1"]);
        dev.deploy(HALFMOON);
        let mut acknowledged = 0;
        let refusal = loop {
            let reply = dev.invoke("order", &json!({"id": "a"}), None).await.unwrap();
            if !reply.status.is_success() {
                break reply;
            }
            acknowledged += 1;
            assert!(acknowledged < ORDERS_MAX, "nothing is refused");
        };
        assert!(acknowledged > 0);
        assert_eq!(refusal.status, 429, "{refusal:?}");
        assert!(format!("{refusal:?}").contains("the log is full"), "{refusal:?}");
        dev.kill_everything();
        let dev = Dev::start(&data);
        let next = json!(acknowledged + 1);
        assert_eq!(dev.result("order", &json!({"id": "a"}), Some("after")).await, next);
        assert!(dev.stop());
    });
}
