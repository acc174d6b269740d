//! The life of a root on this engine: started, attempted until it ends or has failed too often,
//! parked and resumed; whoever waits for it is answered once.

mod attempts;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use halfmoon_protocol::root::Request;
use halfmoon_wire::{InstanceId, RunId, SeqNum};
use tokio::sync::oneshot;

use crate::command::{Invoke, Invoked, Wait};
use crate::hot::Hot;
use crate::ids::fingerprint;
use crate::sync::Notify;
use crate::tree::Tree;
use crate::value::Value;

/// Requests with another input that may wait until the log says what a root runs.
const RIVALS_MAX: usize = 64;
/// A wait for log or store that is shown, in ns: far longer than any that is usual.
const WAITS_SHOWN_NS: u64 = 1_000_000_000;

/// Where a root comes from.
pub(crate) enum Origin {
    /// A client's request, yet to be looked up.
    Client(Box<Invoke>),
    /// A request that is complete.
    Request(Box<Request<Value>>),
    /// The log knows.
    Log,
}

/// By what a request is told from one that reuses its key: function, and fingerprint of the input.
type Asked = (String, u128);

/// A root that is unfinished here.
pub(crate) struct Root {
    pub(crate) id: InstanceId,
    /// Its initial cursor, or a lower bound of it: what holds the safe point.
    pub(crate) floor: Cell<SeqNum>,
    pub(crate) function: RefCell<Option<String>>,
    pub(crate) attempts: Cell<u32>,
    /// The error for which it is parked.
    pub(crate) parked: RefCell<Option<String>>,
    resume: Notify,
    /// Its Finish was applied after its last attempt began.
    ended: Cell<bool>,
    /// Why its last attempt did not end.
    trouble: RefCell<Option<String>>,
    tree: Rc<Tree>,
    origin: RefCell<Option<Origin>>,
    /// What it runs. `None`: what the log says, which was not looked at yet.
    asked: RefCell<Option<Asked>>,
    /// The run of the attempt under way, or of the last.
    run: Cell<Option<RunId>>,
    waiters: RefCell<Vec<(Wait, oneshot::Sender<Invoked>)>>,
    /// Requests under its key with another input than it runs, as long as the log does not say
    /// whose the key is.
    rivals: RefCell<Vec<(Invoke, oneshot::Sender<Invoked>)>>,
    /// What its waiters were answered: whoever asks again before its Finish is committed hears the
    /// same.
    answered: RefCell<Option<Invoked>>,
    accepted: Cell<bool>,
    keyed: bool,
    /// A client has sent it: without one that waits there is no need for it.
    of_client: bool,
}

/// What a request under a root's key is to it.
enum Claim {
    /// The same request.
    Same,
    /// The key is another request's: so says the log.
    Reused,
    /// The log does not say yet.
    Open,
}

impl Root {
    pub(crate) fn new(id: InstanceId, origin: Origin, floor: SeqNum) -> Rc<Self> {
        let (asked, keyed) = match &origin {
            Origin::Client(invoke) => (Some(asked(invoke)), invoke.keyed),
            Origin::Request(request) => (None, request.keyed),
            Origin::Log => (None, true),
        };
        let of_client = matches!(origin, Origin::Client(_));
        Rc::new(Self {
            id,
            floor: Cell::new(floor),
            function: RefCell::new(asked.as_ref().map(|(function, _)| function.clone())),
            attempts: Cell::new(0),
            parked: RefCell::default(),
            resume: Notify::default(),
            ended: Cell::new(false),
            trouble: RefCell::default(),
            tree: Rc::default(),
            origin: RefCell::new(Some(origin)),
            asked: RefCell::new(asked),
            run: Cell::new(None),
            waiters: RefCell::default(),
            rivals: RefCell::default(),
            answered: RefCell::default(),
            accepted: Cell::new(false),
            keyed,
            of_client,
        })
    }

    /// Takes it up again if it is parked; whether it was.
    pub(crate) fn take_up(&self) -> bool {
        let was_parked = self.parked.borrow_mut().take().is_some();
        if was_parked {
            self.resume.notify();
        }
        was_parked
    }

    /// Its Finish is in the log: if it is a peer's, the next attempt here finds the result.
    pub(crate) fn log_ends_it(&self) {
        self.ended.set(true);
        self.take_up();
    }

    fn wait(&self, wait: Wait, reply: oneshot::Sender<Invoked>) {
        self.waiters.borrow_mut().push((wait, reply));
    }

    fn answer(&self, outcome: &Invoked) {
        self.answered.replace(Some(outcome.clone()));
        for (_, reply) in self.waiters.borrow_mut().drain(..) {
            // A caller that has gone needs no answer.
            reply.send(outcome.clone()).ok();
        }
    }

    /// Answers those who only wait for it to be sure to run.
    fn accept(&self) {
        self.accepted.set(true);
        let mut waiters = self.waiters.borrow_mut();
        for (_, reply) in waiters.extract_if(.., |(wait, _)| *wait == Wait::Accepted) {
            reply.send(Invoked::Accepted).ok();
        }
    }

    fn wants_acceptance(&self) -> bool {
        self.waiters.borrow().iter().any(|(wait, _)| *wait == Wait::Accepted)
    }

    /// What keeps it from ending: an answer that log or store owe it, or why its last attempt broke
    /// off.
    pub(crate) fn trouble(&self, now_ns: u64) -> Option<String> {
        let waits_ns = self.tree.waits_ns(now_ns);
        if waits_ns < WAITS_SHOWN_NS {
            return self.trouble.borrow().clone();
        }
        let waits_s = waits_ns / 1_000_000_000;
        Some(format!("the log or the state store has not answered for {waits_s} s"))
    }

    /// What a request under its key is to it.
    fn claim(&self, hot: &Hot, wanted: &Asked) -> Claim {
        let (log, own) = (hot.asked(self.id), self.asked.borrow());
        match (&log, &*own) {
            (Some(log), _) if log != wanted => Claim::Reused,
            // It runs what has lost, and ends when it learns of that.
            (Some(_), Some(own)) if own != wanted => Claim::Open,
            (Some(_), _) => Claim::Same,
            (None, Some(own)) if own == wanted => Claim::Same,
            (None, _) => Claim::Open,
        }
    }

    /// Nobody waits for its reply any more, and nothing of it is in the log.
    fn is_forgotten(&self) -> bool {
        let waiters = self.waiters.borrow();
        !self.keyed
            && !self.accepted.get()
            && self.of_client
            && waiters.iter().all(|(_, reply)| reply.is_closed())
    }
}

fn asked(invoke: &Invoke) -> Asked {
    (invoke.function.to_string(), fingerprint(&invoke.input))
}

/// A client's request: joins the root if it is here, else begins it.
pub(crate) fn invoke(hot: &Rc<Hot>, invoke: Invoke, reply: oneshot::Sender<Invoked>) {
    let known = hot.roots.borrow().get(&invoke.id).cloned();
    if let Some(root) = known {
        join(hot, &root, invoke, reply);
        return;
    }
    let refusal = if hot.stopping.get() {
        Some(Invoked::Unavailable("the engine is stopping".to_owned()))
    } else if !hot.caught_up.get() {
        // What it knows of this root may be long out of date.
        let why = "the engine has not seen the end of the log yet";
        Some(Invoked::Unavailable(why.to_owned()))
    } else {
        hot.is_full(invoke.id).map(Invoked::Overloaded)
    };
    if let Some(refusal) = refusal {
        reply.send(refusal).ok();
        return;
    }
    let (id, wait) = (invoke.id, invoke.wait);
    let root = Root::new(id, Origin::Client(Box::new(invoke)), hot.log.applied());
    root.wait(wait, reply);
    if !begin(hot, &root) {
        root.answer(&Invoked::Overloaded("too many tasks run on this engine".to_owned()));
    }
}

fn join(hot: &Hot, root: &Root, invoke: Invoke, reply: oneshot::Sender<Invoked>) {
    let claim = root.claim(hot, &asked(&invoke));
    let (parked, answered) = (root.parked.borrow().clone(), root.answered.borrow().clone());
    let now = match (claim, parked, answered) {
        (Claim::Reused, ..) => Invoked::KeyReused,
        (_, Some(error), _) => Invoked::Parked { error },
        (Claim::Open, None, _) => {
            let mut rivals = root.rivals.borrow_mut();
            rivals.retain(|(_, reply)| !reply.is_closed());
            if rivals.len() < RIVALS_MAX {
                rivals.push((invoke, reply));
                return;
            }
            Invoked::Overloaded("too many requests with different inputs bear this key".to_owned())
        }
        (Claim::Same, None, _) if invoke.wait == Wait::Accepted && root.accepted.get() => {
            Invoked::Accepted
        }
        (Claim::Same, None, Some(outcome)) => outcome,
        (Claim::Same, None, None) => {
            root.wait(invoke.wait, reply);
            return;
        }
    };
    reply.send(now).ok();
}

/// The log says now what a root runs: so requests with another input are told.
pub(crate) fn decided(hot: &Hot, root: &Root) {
    for (invoke, reply) in root.rivals.take() {
        join(hot, root, invoke, reply);
    }
}

/// Starts a root's task; false when there is no room for it.
pub(crate) fn begin(hot: &Rc<Hot>, root: &Rc<Root>) -> bool {
    hot.roots.borrow_mut().insert(root.id, Rc::clone(root));
    let task = {
        let (hot, root) = (Rc::clone(hot), Rc::clone(root));
        async move { run(&hot, root).await }
    };
    let begun = hot.executor.spawn(task).is_ok();
    if !begun {
        hot.roots.borrow_mut().remove(&root.id);
    }
    begun
}

/// Runs a root, and again as long as it is this engine's to end: it may have been inherited while
/// a request for it was under way here, which then came to nothing.
async fn run(hot: &Rc<Hot>, mut root: Rc<Root>) {
    let mut times = 0;
    loop {
        Box::pin(attempts::live(hot, &root)).await;
        hot.roots.borrow_mut().remove(&root.id);
        for (rival, reply) in root.rivals.take() {
            invoke(hot, rival, reply);
        }
        if hot.own(root.id).is_none() {
            return;
        }
        times += 1;
        hot.executor.sleep(hot.backoff_ns(times)).await;
        // Meanwhile it may have ended, or be run by another task: then that one's end comes here.
        let Some(floor) = hot.own(root.id) else { return };
        if hot.stopping.get() || hot.roots.borrow().contains_key(&root.id) {
            return;
        }
        root = Root::new(root.id, Origin::Log, floor);
        hot.roots.borrow_mut().insert(root.id, Rc::clone(&root));
    }
}
