//! What drift is, for everybody who asks: for long enough nobody has done what is wanted, or somebody who has been
//! here for long enough says that it runs something else.

/// Appends the condition that the event `e` says what is wanted of an artifact: the newest of its key, of a type that
/// gateways answer. An artifact that was deleted has a newer event, of another type.
macro_rules! push_wanted {
    ($query:expr) => {{
        $query.push(
            "e.event_key <> '' AND NOT EXISTS (SELECT 1 FROM gateway_events n
               WHERE n.gateway_id = e.gateway_id AND n.event_key = e.event_key AND n.revision > e.revision) AND ",
        );
        $crate::store::push_in!($query, "e.type", $crate::events::answered_names());
    }};
}
pub(super) use push_wanted;

/// Joins what the connection `c` says of the artifact of the event `e`, which may be nothing.
macro_rules! join_said {
    () => {
        " LEFT JOIN gateway_reported r ON r.gateway_id = c.gateway_id AND r.instance_id = c.instance_id
            AND r.artifact_id = e.artifact_id"
    };
}
pub(super) use join_said;

/// Appends the condition that nobody has done what the event `e` wants, since before a time.
macro_rules! push_undone {
    ($query:expr, $since:expr) => {{
        $query.push("(e.state <> 'acked' AND e.created_at < ").push_bind($since).push(")");
    }};
}
pub(super) use push_undone;

/// Appends the condition that the event `e` is done, and that the connection `c`, with what it says in `r`, runs
/// something else since before a time. Connections that share what they know have a row together, without an
/// instance id; it counts while one of them is here. Who says nothing at all does not say what it runs, but who says
/// something runs nothing else.
macro_rules! push_differs {
    ($query:expr, $since:expr) => {{
        $query.push("(e.state = 'acked' AND e.created_at < ").push_bind($since);
        $query.push(" AND c.connected_at < ").push_bind($since);
        $query.push(" AND COALESCE(r.deployment_id, '') <> CASE WHEN ");
        $crate::store::push_in!($query, "e.type", $crate::events::names_of($crate::events::Action::Deploy));
        $query.push(
            " THEN e.deployment_id ELSE '' END AND (r.artifact_id IS NOT NULL OR (c.instance_id <> ''
                AND EXISTS (SELECT 1 FROM gateway_reported s
                  WHERE s.gateway_id = c.gateway_id AND s.instance_id = c.instance_id))))",
        );
    }};
}
pub(super) use push_differs;

/// Appends the condition that the artifact of the event `e` has drifted since before a time.
macro_rules! push_drifted {
    ($query:expr, $since:expr) => {{
        $query.push("(");
        $crate::store::drift::push_undone!($query, $since);
        $query.push(concat!(
            " OR EXISTS (SELECT 1 FROM connections c",
            $crate::store::drift::join_said!(),
            " WHERE c.gateway_id = e.gateway_id AND ",
        ));
        $crate::store::drift::push_differs!($query, $since);
        $query.push("))");
    }};
}
pub(super) use push_drifted;
