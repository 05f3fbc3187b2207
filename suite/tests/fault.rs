//! The platform in several processes, while everything goes wrong that can: in the end every gateway runs exactly what
//! is wanted, nothing went back, and nothing was lost.
//!
//! A short run is part of `make test`; `make fault` runs the long one. The seed is printed: with `FAULT_SEED` the same
//! faults come in the same order.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking; this one prints figures"
)]

#[path = "fault/faults.rs"]
mod faults;
#[path = "fault/figures.rs"]
mod figures;
#[path = "fault/fleet.rs"]
mod fleet;
#[path = "fault/orders.rs"]
mod orders;
#[path = "fault/platform.rs"]
mod platform;
#[path = "fault/quiet.rs"]
mod quiet;
mod support;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use suite::controller::Dice;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    faults::Injector,
    figures::Figures,
    fleet::Fleet,
    orders::{Book, Pass, Person},
    platform::Platform,
    quiet::Ending,
    support::{Account, PATIENCE, wait_for},
};

/// How many APIs there are for each person.
const APIS: usize = 6;
/// How many people deploy at the same time.
const PEOPLE: usize = 2;

/// A number of the environment.
fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        _ => default,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_goes_wrong_every_gateway_ends_with_what_is_wanted() {
    let seconds = setting("FAULT_SECONDS", 25);
    let controllers = usize::try_from(setting("FAULT_GATEWAYS", 24)).unwrap();
    let seed = setting("FAULT_SEED", u64::from_le_bytes(service_kit::opaque::random::<8>()) >> 32);
    println!("FAULT_SEED={seed} FAULT_SECONDS={seconds} FAULT_GATEWAYS={controllers}");
    let long = seconds >= 120;
    let mut dice = Dice::new(seed);

    let mut platform = Platform::start().await;
    let account = Account::new(&platform.door(0).client()).await;
    let mut fleet = Fleet::start(&platform, &account, controllers, &mut dice).await;
    wait_for("every controller is connected", async || {
        fleet.members.iter().all(|member| member.state().connected).then_some(())
    })
    .await;

    let mut pass = Pass::of(&account);
    let book = Arc::new(Mutex::new(Book::default()));
    let (mut people, stop) = (JoinSet::new(), CancellationToken::new());
    let mut apis = Vec::new();
    for number in 0..PEOPLE {
        let mut own = Vec::new();
        for api in 0..APIS {
            own.push(account.api(&format!("api-{number}-{api}")).await);
        }
        apis.extend(own.clone());
        let person = Person {
            door: platform.door(number),
            pass: pass.clone(),
            apis: own,
            gateways: fleet.gateways(),
            dice: Dice::new(dice.any()),
            book: book.clone(),
            pause: Duration::from_millis(100),
        };
        people.spawn(person.work(stop.clone()));
    }

    let (freeze, every) = if long { ((5, 36), 4_000) } else { ((5, 4), 1_500) };
    let mut injector = Injector::new(Dice::new(dice.any()), freeze, Duration::from_millis(every));
    let end = Instant::now() + Duration::from_secs(seconds);
    injector.run(&mut platform, &mut fleet, end).await;
    stop.cancel();
    people.join_all().await;

    let quiet = Instant::now();
    let patience = if long { 4 * PATIENCE } else { 2 * PATIENCE };
    pass.client(&platform.door(0)).await;
    let ending = Ending { platform: &platform, fleet: &fleet, pass: &pass, apis: &apis, book: &book };
    let end = ending.converge(patience).await;
    let figures = Figures::of(&fleet, &book.lock().unwrap(), &injector.injected, quiet.elapsed());
    println!("{figures}");
    if let Err(problems) = end.judge(&fleet, &book.lock().unwrap()) {
        let folder = platform.keep_logs();
        panic!("seed {seed}; logs in {}:\n{}", folder.display(), problems.join("\n"));
    }
}
