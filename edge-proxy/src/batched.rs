//! A connection that lets go first whatever else is ready.
//!
//! Many calls share a connection, and each that has something for it wakes it. Woken, it would run at once, and write
//! the frames of one call: a system call for each, which costs more than the rest of the call. Run after the
//! others that are ready, it writes the frames of all of them together. When nothing else is ready it runs at once.

use std::{
    future::{Future, poll_fn},
    task::Poll,
};

use tokio::task::yield_now;

/// Carries `connection`, in batches.
pub(crate) async fn batched<F: Future>(connection: F) -> F::Output {
    let mut connection = std::pin::pin!(connection);
    loop {
        yield_now().await;
        let polled = poll_fn(|cx| Poll::Ready(connection.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return output;
        }
        // Whoever wakes the connection wakes this.
        let mut is_woken = false;
        poll_fn(|_| match std::mem::replace(&mut is_woken, true) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use tokio::{sync::Notify, task::LocalSet};

    use super::batched;

    #[tokio::test]
    async fn what_is_ready_goes_first() {
        let (begin, wake) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let order = Rc::new(RefCell::new(Vec::new()));
        let local = LocalSet::new();
        let (woken, seen) = (wake.clone(), order.clone());
        let connection = local.spawn_local(batched(async move {
            woken.notified().await;
            seen.borrow_mut().push("connection");
        }));
        for name in ["one", "two", "three"] {
            let (begin, wake, order) = (begin.clone(), wake.clone(), order.clone());
            local.spawn_local(async move {
                begin.notified().await;
                order.borrow_mut().push(name);
                wake.notify_one();
            });
        }
        local
            .run_until(async {
                // Until all of them wait.
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                begin.notify_waiters();
                connection.await.unwrap();
            })
            .await;
        assert_eq!(*order.borrow(), ["one", "two", "three", "connection"]);
    }
}
