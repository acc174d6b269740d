//! The metadata store of a cluster: etcd, asked through its JSON gateway (`/v3/kv/…`), which every
//! etcd since 3.4 serves on its client port.
//!
//! Keys lie under `/<prefix>/`. A change is one etcd transaction that compares the key's
//! `mod_revision`, so etcd's own order is the order of this store. Reads are linearizable ones.

mod api;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::store::{ENTRIES_MAX, check_key, check_value};
use crate::{CasError, Entry, Expected, MetaError, MetaStore, Revision};
use api::{Compare, KeyValue, Op, Range, RangeReply, Txn, TxnReply, Unanswered};

/// How long a call tries the endpoints, one after another. etcd elects a leader within a few
/// seconds; longer outages are the caller's to wait out.
const CALL_MAX: Duration = Duration::from_secs(10);

/// How long one endpoint may take.
const ENDPOINT_MAX: Duration = Duration::from_secs(4);

/// Most endpoints of one etcd. Clusters of etcd have 3 to 7 members.
const ENDPOINTS_MAX: usize = 9;

/// What keys lie under when the address names nothing else.
const PREFIX_DEFAULT: &str = "halfmoon";

/// What an address begins with.
pub(crate) const SCHEME: &str = "etcd://";

/// A [`MetaStore`] in etcd.
pub struct EtcdStore {
    agent: ureq::Agent,
    /// `host:port` of each member.
    endpoints: Vec<String>,
    /// Of the endpoint that answered last.
    preferred: AtomicUsize,
    prefix: String,
}

impl EtcdStore {
    /// The store at `address`: `etcd://HOST:PORT[,HOST:PORT…][/PREFIX]`. Asks nothing yet.
    ///
    /// # Errors
    /// [`MetaError::BadAddress`] when that is no such address.
    pub fn new(address: &str) -> Result<Self, MetaError> {
        let bad = |why| MetaError::BadAddress { address: address.to_owned(), why };
        let rest = address.strip_prefix(SCHEME).ok_or_else(|| bad("it begins with etcd://"))?;
        let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = if prefix.is_empty() { PREFIX_DEFAULT } else { prefix.trim_end_matches('/') };
        check_key(prefix).map_err(|_| bad("its prefix has characters that keys may not have"))?;
        let endpoints: Vec<String> = hosts.split(',').map(str::to_owned).collect();
        let has_port = |endpoint: &String| {
            let port = endpoint.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            port.is_some_and(|(_, port)| port.parse::<u16>().is_ok())
        };
        if !endpoints.iter().all(has_port) {
            return Err(bad("each member is HOST:PORT"));
        }
        if endpoints.len() > ENDPOINTS_MAX {
            return Err(bad("it names too many members"));
        }
        let prefix = format!("/{prefix}/");
        Ok(Self { agent: api::agent(), endpoints, preferred: AtomicUsize::new(0), prefix })
    }

    fn key(&self, key: &str) -> Vec<u8> {
        [self.prefix.as_bytes(), key.as_bytes()].concat()
    }

    /// Asks one endpoint after another until one answers. `again` says of which failures another
    /// one may be asked; the last failure is returned.
    fn ask<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        question: &Q,
        again: impl Fn(&Unanswered) -> bool,
    ) -> Result<A, Unanswered> {
        let end = Instant::now() + CALL_MAX;
        let first = self.preferred.load(Ordering::Relaxed);
        let mut last = None;
        for turn in 0..self.endpoints.len() {
            let index = (first + turn) % self.endpoints.len();
            let left = end.saturating_duration_since(Instant::now()).min(ENDPOINT_MAX);
            if left.is_zero() {
                break;
            }
            match api::post(&self.agent, &self.endpoints[index], path, question, left) {
                Ok(answer) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(failure) if again(&failure) => last = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        Err(last.unwrap_or_else(Unanswered::out_of_time))
    }

    fn range(&self, range: &Range) -> Result<RangeReply, MetaError> {
        // A read has no effect: whoever can answer it may.
        Ok(self.ask("/v3/kv/range", range, |_| true)?)
    }

    /// Carries out `change` if the key is as `expected`; the revision of the change.
    fn change(&self, key: &str, expected: Expected, change: Op) -> Result<Revision, CasError> {
        let revision = match expected {
            Expected::Absent => Revision(0),
            Expected::At(revision) => revision,
        };
        let full = self.key(key);
        let txn = Txn {
            compare: vec![Compare::modified_at(&full, revision)],
            success: vec![change],
            failure: vec![Op::Range(Range::one(&full))],
        };
        // Another endpoint may be asked only if this one has not seen the question: it might have
        // carried it out, and then the second time would look like somebody else's change.
        let reply: TxnReply = self.ask("/v3/kv/txn", &txn, |failure| !failure.was_sent())?;
        if reply.succeeded {
            return Ok(Revision(reply.header.revision));
        }
        let found = reply.responses.into_iter().find_map(|response| response.range);
        let current = found.and_then(|range| range.kvs.into_iter().next()).map(KeyValue::entry);
        Err(CasError::Conflict { current: current.transpose()? })
    }

    /// Refuses a new key where there are too many. Two at once may both see the last free place:
    /// the bound is for those who read them all, and one more does not hurt them.
    fn has_room(&self) -> Result<(), MetaError> {
        let all = Range { count_only: true, ..Range::under(self.prefix.as_bytes()) };
        let count = usize::try_from(self.range(&all)?.count).unwrap_or(usize::MAX);
        if count >= ENTRIES_MAX { Err(MetaError::Full) } else { Ok(()) }
    }
}

impl MetaStore for EtcdStore {
    fn get(&self, key: &str) -> Result<Option<Entry>, MetaError> {
        check_key(key)?;
        let reply = self.range(&Range::one(&self.key(key)))?;
        reply.kvs.into_iter().next().map(KeyValue::entry).transpose()
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Entry)>, MetaError> {
        let all = Range { limit: ENTRIES_MAX as u64 + 1, ..Range::under(&self.key(prefix)) };
        let reply = self.range(&all)?;
        if reply.kvs.len() > ENTRIES_MAX {
            return Err(MetaError::Full);
        }
        let mut entries = Vec::with_capacity(reply.kvs.len());
        for found in reply.kvs {
            let full = found.name()?;
            let key = full.strip_prefix(&self.prefix).unwrap_or(&full).to_owned();
            entries.push((key, found.entry()?));
        }
        Ok(entries)
    }

    fn compare_and_set(
        &self,
        key: &str,
        expected: Expected,
        value: &[u8],
    ) -> Result<Revision, CasError> {
        check_key(key)?;
        check_value(key, value)?;
        if expected == Expected::Absent {
            self.has_room()?;
        }
        self.change(key, expected, Op::put(&self.key(key), value))
    }

    fn delete(&self, key: &str, expected: Revision) -> Result<(), CasError> {
        check_key(key)?;
        self.change(key, Expected::At(expected), Op::delete(&self.key(key))).map(drop)
    }
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_members_and_a_prefix() {
        let store = EtcdStore::new("etcd://a:2379,10.0.0.1:2379/shop/eu/").unwrap();
        assert_eq!(store.endpoints, ["a:2379", "10.0.0.1:2379"]);
        assert_eq!(store.prefix, "/shop/eu/");
        assert_eq!(EtcdStore::new("etcd://[::1]:2379").unwrap().prefix, "/halfmoon/");
        for bad in
            ["http://a:1", "etcd://", "etcd://a", "etcd://a:b", "etcd://a:1,", "etcd://a:1/x y"]
        {
            assert!(matches!(EtcdStore::new(bad), Err(MetaError::BadAddress { .. })), "{bad}");
        }
    }

    #[test]
    fn a_change_that_nobody_took_was_not_made() {
        // Nothing can be sent to port 0.
        let store = EtcdStore::new("etcd://127.0.0.1:0").unwrap();
        let error = store.compare_and_set("a", Expected::At(Revision(3)), b"").unwrap_err();
        assert!(matches!(error, CasError::Failed(MetaError::Etcd { .. })), "{error}");
    }
}
