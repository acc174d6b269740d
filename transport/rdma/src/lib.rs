//! The contract of one-sided writes over RDMA, and over TCP wherever there is none.
//!
//! Every lane begins as one over TCP. If both sides have an adapter with the address of that
//! connection, they connect queue pairs, and each writes a word into the other's memory; once both
//! words have arrived, the side that dialled decides for RDMA. Otherwise the lane goes on over TCP. The
//! TCP connection of an RDMA lane stays, and says when the peer is gone.
//!
//! Without the feature `verbs` there is nothing here but [`Wire`], which is then TCP. With it, the
//! program still starts where libibverbs is not installed: the library is loaded when it is needed.
//!
//! `unsafe` code of this package is in `library.rs` and `verbs.rs`.

use std::net::IpAddr;

use halfmoon_reactor::SharedReactor;

#[cfg(feature = "verbs")]
mod alarm;
mod choice;
#[cfg(feature = "verbs")]
mod deal;
#[cfg(feature = "verbs")]
mod exposures;
#[cfg(feature = "verbs")]
mod library;
#[cfg(feature = "verbs")]
mod link;
#[cfg(feature = "verbs")]
mod meeting;
#[cfg(feature = "verbs")]
mod note;
#[cfg(feature = "verbs")]
mod place;
#[cfg(feature = "verbs")]
mod rdma;
#[cfg(feature = "verbs")]
mod staging;
#[cfg(feature = "verbs")]
mod verbs;
#[cfg(feature = "verbs")]
mod watched;
#[cfg(feature = "verbs")]
mod work;

pub use choice::Choice;
#[cfg(feature = "verbs")]
pub use rdma::Rdma;

/// The transport of nodes: the best that this build has.
#[cfg(feature = "verbs")]
pub type Wire = Rdma;

/// The transport of nodes: the best that this build has.
#[cfg(not(feature = "verbs"))]
pub type Wire = halfmoon_tcp::Tcp;

/// A transport for a node.
#[must_use]
pub fn wire(reactor: SharedReactor, choice: Choice) -> Wire {
    #[cfg(feature = "verbs")]
    return Rdma::new(reactor, choice);
    // The only choice there is.
    #[cfg(not(feature = "verbs"))]
    return {
        let _ = choice;
        halfmoon_tcp::Tcp::new(reactor)
    };
}

/// The names of the adapters that open.
///
/// # Errors
/// When this build has no RDMA, or the library does not load, in words for a person.
pub fn devices() -> Result<Vec<String>, String> {
    #[cfg(feature = "verbs")]
    return verbs::devices()
        .map(|devices| devices.iter().map(|device| device.name().to_owned()).collect())
        .map_err(|why| why.to_string());
    #[cfg(not(feature = "verbs"))]
    return Err("this build has no RDMA".to_owned());
}

/// The adapter that has an address.
#[must_use]
pub fn device_of(address: IpAddr) -> Option<String> {
    #[cfg(feature = "verbs")]
    return verbs::devices().ok()?.iter().find_map(|device| {
        place::find(device.name(), &deal::gid_of(address))?;
        Some(device.name().to_owned())
    });
    #[cfg(not(feature = "verbs"))]
    return {
        let _ = address;
        None
    };
}

/// Why no lane of this machine's nodes can be one over RDMA, in words for whoever built it in; `None` if
/// there may be some, or none is wanted.
#[must_use]
pub fn lacking(choice: Choice) -> Option<String> {
    #[cfg(feature = "verbs")]
    return match (choice, verbs::devices()) {
        (Choice::Tcp, _) => None,
        (_, Err(why)) => Some(why.to_string()),
        (_, Ok(devices)) => place::usable(devices, choice).is_empty().then(|| NO_DEVICE.to_owned()),
    };
    #[cfg(not(feature = "verbs"))]
    return {
        let _ = choice;
        None
    };
}

/// What is said where no adapter can be used.
#[cfg(feature = "verbs")]
const NO_DEVICE: &str = "this machine has no RDMA device";

/// An address of an adapter of this machine: lanes between such addresses can be ones over RDMA.
///
/// # Errors
/// When there is none, in words for whoever asked for RDMA.
pub fn address() -> Result<IpAddr, String> {
    #[cfg(feature = "verbs")]
    return place::any_address(&verbs::devices().map_err(|why| why.to_string())?);
    #[cfg(not(feature = "verbs"))]
    return Err("this build has no RDMA: build it with `--features rdma`".to_owned());
}
