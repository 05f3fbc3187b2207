//! Types and rules: who may do what, and what holds for organizations, projects and APIs.
//! Nothing here knows gRPC or SQL.

pub mod access;
pub mod apis;
pub mod artifact;
pub mod deployments;
pub mod imports;
pub mod openapi;
pub mod organizations;
pub mod projects;
pub mod revisions;

/// A page of a list, and how long the whole list is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed<T> {
    /// The entries of the page.
    pub list: Vec<T>,
    /// How many entries there are in all.
    pub total: i64,
}
