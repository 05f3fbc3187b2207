//! The writing side of all logs of this instance: what waits at the same moment is written in one transaction,
//! and everybody gets an answer of his own. Nothing waits for more to come.

use std::sync::Arc;

use service_kit::{Clock, Error, Kind, Result, shutdown::Tasks};
use tokio::sync::{mpsc, oneshot};

use super::{
    acks::{AckFrom, Verdict},
    log::{Delivery, Taken},
};
use crate::store::{Batch, EventStore, Outcome};

/// The most jobs of one transaction, and that may wait: others wait to wait.
const MOST: usize = 1_024;

/// Writes to the logs. Clones share one queue.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    jobs: mpsc::Sender<Job>,
}

/// Something to write, and who wants to know what became of it.
#[derive(Debug)]
enum Job {
    Deliver(Delivery, oneshot::Sender<Result<Taken>>),
    Acknowledge(AckFrom, oneshot::Sender<Result<Verdict>>),
}

#[derive(Debug)]
struct Writer {
    store: Arc<dyn EventStore>,
    clock: Clock,
}

impl Journal {
    /// Starts to write. It ends when everybody else has.
    pub(crate) fn start(store: Arc<dyn EventStore>, clock: Clock, tasks: &Tasks) -> Self {
        let (jobs, mut queue) = mpsc::channel(MOST);
        let (writer, end) = (Writer { store, clock }, tasks.ending());
        tasks.spawn_last("journal", async move {
            let mut waiting = Vec::new();
            loop {
                tokio::select! {
                    count = queue.recv_many(&mut waiting, MOST) => if count == 0 { break },
                    () = end.cancelled() => break,
                }
                writer.write(std::mem::take(&mut waiting)).await;
            }
            end.cancelled().await;
            Ok(())
        });
        Self { jobs }
    }

    /// Takes what is to be sent to a gateway next; the log knows of it from now on.
    pub(crate) async fn deliver(&self, delivery: Delivery) -> Result<Taken> {
        self.ask(|reply| Job::Deliver(delivery, reply)).await
    }

    /// Applies an acknowledgement and reports it.
    pub(crate) async fn acknowledge(&self, answer: AckFrom) -> Result<Verdict> {
        self.ask(|reply| Job::Acknowledge(answer, reply)).await
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T>>) -> Job) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).await.map_err(|_| over())?;
        answer.await.map_err(|_| over())?
    }
}

impl Writer {
    /// Writes jobs in one transaction. One that breaks it is found by halving, and fails alone.
    async fn write(&self, jobs: Vec<Job>) {
        let mut open = vec![jobs];
        while let Some(mut jobs) = open.pop() {
            let error = match self.store.write(&batch(&jobs), self.clock.now_ms()).await {
                Ok(outcome) => {
                    answer(jobs, outcome);
                    continue;
                }
                Err(error) => error,
            };
            if error.kind() == Kind::Unavailable {
                // It is not any of them: nobody is to wait for more attempts.
                open.drain(..).flatten().chain(jobs).for_each(|job| refuse(job, copy(&error)));
            } else if jobs.len() > 1 {
                tracing::warn!(%error, jobs = jobs.len(), "writes failed together, will try fewer at once");
                let second = jobs.split_off(jobs.len() / 2);
                open.extend([second, jobs]);
            } else {
                jobs.into_iter().for_each(|job| refuse(job, copy(&error)));
            }
        }
    }
}

fn batch(jobs: &[Job]) -> Batch {
    let mut batch = Batch::default();
    for job in jobs {
        match job {
            Job::Deliver(delivery, _) => batch.deliveries.push(delivery.clone()),
            Job::Acknowledge(answer, _) => batch.answers.push(answer.clone()),
        }
    }
    batch
}

/// Whoever does not listen any more has ended: what was written comes again on its next connection.
fn answer(jobs: Vec<Job>, outcome: Outcome) {
    let (mut taken, mut verdicts) = (outcome.taken.into_iter(), outcome.verdicts.into_iter());
    for job in jobs {
        match job {
            Job::Deliver(_, reply) => drop(taken.next().map(|taken| reply.send(Ok(taken)))),
            Job::Acknowledge(_, reply) => drop(verdicts.next().map(|verdict| reply.send(Ok(verdict)))),
        }
    }
}

fn refuse(job: Job, error: Error) {
    match job {
        Job::Deliver(_, reply) => drop(reply.send(Err(error))),
        Job::Acknowledge(_, reply) => drop(reply.send(Err(error))),
    }
}

/// The same error for one more.
fn copy(error: &Error) -> Error {
    Error::new(error.kind(), error.reason().to_owned(), error.message()).caused_by(anyhow::anyhow!("{error}"))
}

fn over() -> Error {
    Error::new(Kind::Unavailable, "DRAINING", "the service restarts")
}
