//! The middlewares of the edge, one a file. `stack` has their order; none of them writes an error's reply.

pub(crate) mod authority;
pub(crate) mod compression;
pub(crate) mod cors;
pub(crate) mod date;
pub(crate) mod identity;
pub(crate) mod limits;
pub(crate) mod paths;
pub(crate) mod report;
pub(crate) mod request_id;
pub(crate) mod rescue;
pub(crate) mod security_headers;
pub(crate) mod trace;

use crate::{Body, incoming::Incoming};

/// A request on its way in.
pub(crate) type Request = http::Request<Incoming>;

/// A response on its way out.
pub(crate) type Response = http::Response<Body>;
