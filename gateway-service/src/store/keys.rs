//! What of a key still counts.

/// Appends the condition that the event `n` is newer than `e` and takes its place: it is about the same, and it says
/// all that counts, or it is of the same type. What changes something needs the event that made it.
macro_rules! push_replaces {
    ($query:expr) => {{
        $query.push(
            "n.gateway_id = e.gateway_id AND n.event_key = e.event_key AND n.revision > e.revision
             AND (n.type = e.type OR NOT (",
        );
        $crate::store::push_in!($query, "n.type", $crate::events::of_same_type());
        $query.push("))");
    }};
}
pub(super) use push_replaces;
