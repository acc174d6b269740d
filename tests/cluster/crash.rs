//! SIGKILL to everything, at any moment.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::support::{Dev, HALFMOON, Scratch, Shared, block_on, halfmoon, text};

/// How often everything is killed.
const ROUNDS: u64 = 10;
/// How often a question is asked again.
const ASKED_AGAIN_MAX: u32 = 100;
/// Requests on their way at once.
const CLIENTS: usize = 4;

/// Sends keyed requests until the cluster is gone; notes which were acknowledged.
pub async fn load(dev: &Dev, round: u64, acknowledged: &Shared<BTreeSet<String>>, warm: &Notify) {
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        clients.push(async move {
            for number in 0u64.. {
                let id = format!("{round}-{client}-{number}");
                match dev.invoke("order", &json!({ "id": id }), Some(&id)).await {
                    Ok(reply) if reply.status == 200 => {
                        acknowledged.lock().unwrap().insert(id);
                        if number == 3 {
                            warm.notify_one();
                        }
                    }
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        });
    }
    let [a, b, c, d]: [_; CLIENTS] = clients.try_into().unwrap_or_else(|_| unreachable!());
    tokio::join!(a, b, c, d);
}

#[test]
fn nothing_acknowledged_is_missing_after_everything_is_killed_ten_times() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let acknowledged: Shared<BTreeSet<String>> = Arc::new(Mutex::new(BTreeSet::new()));
    for round in 0..ROUNDS {
        let dev = Dev::start(&data);
        if round == 0 {
            dev.deploy(HALFMOON);
        }
        block_on(async {
            check(&dev, &acknowledged).await;
            let warm = Notify::new();
            // Once requests flow, at a moment that differs from round to round.
            let moment = Duration::from_millis(20 + round * 37 % 300);
            tokio::select! {
                () = load(&dev, round, &acknowledged, &warm) => {}
                () = async {
                    warm.notified().await;
                    tokio::time::sleep(moment).await;
                } => {}
            }
        });
        dev.kill_everything();
    }
    let dev = Dev::start(&data);
    block_on(check(&dev, &acknowledged));
    assert!(dev.stop());
    let output = halfmoon(&["verify", "--data-dir", data.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stdout));
    let count = acknowledged.lock().unwrap().len();
    assert!(count > 50, "only {count} requests were acknowledged: that proves little");
    println!("{count} acknowledged over {ROUNDS} kills of everything, all there, each once");
}

/// What is known of these orders. On a busy machine an engine may be taken for dead at any time: who was
/// talking to it then asks again, as this only reads.
async fn inspect(dev: &Dev, ids: &[String]) -> Value {
    let input = json!({ "ids": ids });
    for _ in 0..ASKED_AGAIN_MAX {
        match dev.invoke("inspect", &input, None).await {
            Ok(reply) if reply.status == 200 => {
                return serde_json::from_slice(&reply.body).unwrap();
            }
            Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    dev.result("inspect", &input, None).await
}

/// Every acknowledged order was processed, and once.
pub async fn check(dev: &Dev, acknowledged: &Shared<BTreeSet<String>>) {
    let ids: Vec<String> = acknowledged.lock().unwrap().iter().cloned().collect();
    for ids in ids.chunks(100) {
        let found = inspect(dev, ids).await;
        for id in ids {
            assert_eq!(found["orders"][id], json!(1), "order {id}");
        }
    }
}
