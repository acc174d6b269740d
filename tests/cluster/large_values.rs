//! Large values reach a function without a copy by the engine.

use bytes::Bytes;
use halfmoon_bench::http::{Call, Client};
use hyper::Method;
use serde_json::json;

use crate::support::{Dev, PATIENCE, Scratch, block_on, example, text};

/// A counter of an engine.
async fn counter(dev: &Dev, name: &str) -> u64 {
    let call = Call {
        method: Method::GET,
        path: "/metrics",
        headers: &[],
        body: Bytes::new(),
        timeout: PATIENCE,
    };
    let reply = Client::new(dev.engines[0]).send(call).await.unwrap();
    let metrics = text(&reply.body);
    let line = metrics.lines().find(|line| line.starts_with(&format!("{name} ")));
    line.and_then(|line| line.split(' ').nth(1)).unwrap().parse().unwrap()
}

#[test]
fn a_value_of_one_mib_is_seen_where_the_network_has_put_it() {
    let scratch = Scratch::new();
    let dev = Dev::start(&scratch.path("data"));
    dev.deploy(&example("large_values"));
    block_on(async {
        let len = 1 << 20;
        assert_eq!(dev.result("store", &json!(len), None).await, json!(len));
        let before = counter(&dev, "halfmoon_values_landed_total").await;
        let seen = dev.result("look", &json!(null), None).await;
        assert_eq!(seen["len"], json!(len));
        assert_eq!(seen["sum"], json!(4096 * 255 * 128));
        assert!(seen["arena_offset"].is_u64(), "it lies in the function's own memory: {seen}");
        assert_eq!(counter(&dev, "halfmoon_values_landed_total").await, before + 1);
        assert_eq!(counter(&dev, "halfmoon_value_bytes_copied_total").await, 0);
    });
}
