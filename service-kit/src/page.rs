//! Pages of lists: limit 1 to 100, 20 when absent, any offset.

use proto::common::Pagination;

use crate::error::{Error, Result};

/// A checked page of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// The most entries to return.
    pub limit: u32,
    /// How many entries to skip.
    pub offset: u32,
}

impl Page {
    /// The page of a request's `limit` and `offset`.
    pub fn of(limit: Option<u32>, offset: u32) -> Result<Self> {
        match limit.unwrap_or(20) {
            limit @ 1..=100 => Ok(Self { limit, offset }),
            _ => Err(Error::field("limit", "must be 1 to 100")),
        }
    }

    /// `limit` for SQL.
    pub fn sql_limit(&self) -> i64 {
        i64::from(self.limit)
    }

    /// `offset` for SQL.
    pub fn sql_offset(&self) -> i64 {
        i64::from(self.offset)
    }

    /// Where the page lies in a list of `total`.
    pub fn pagination(&self, total: i64) -> Pagination {
        Pagination { total: u32::try_from(total).unwrap_or(u32::MAX), offset: self.offset, limit: self.limit }
    }
}
