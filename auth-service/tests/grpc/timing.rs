//! What the time of an answer tells: nothing of whether there is an account.

use std::time::{Duration, Instant};

use service_kit::testing::TestDatabase;

use crate::harness::{Auth, login, refusal};

const PAIRS: usize = 200;

/// How long a wrong password takes.
async fn time(auth: &Auth, email: &str) -> Duration {
    let client = auth.client();
    let begin = Instant::now();
    let refused = login(&client, email, "not-her-password").await;
    let time = begin.elapsed();
    assert_eq!(refusal(refused).1, "INVALID_CREDENTIALS");
    time
}

/// Without a hash of its own an unknown address would answer many times faster. The two must be no more
/// apart than chance puts them, or by less than anybody could use.
#[tokio::test]
async fn unknown_and_wrong_take_alike() {
    let auth = Box::pin(Auth::start(TestDatabase::sqlite())).await;
    auth.user("jane@example.com").await;
    for email in ["jane@example.com", "joan@example.com"] {
        time(&auth, email).await;
    }
    let (mut wrong, mut unknown) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        // Failures are forgotten after half a day: none of them meets a lock, which answers sooner.
        auth.clock.advance_ms(12 * 3_600 * 1_000);
        if pair % 2 == 0 {
            wrong.push(time(&auth, "jane@example.com").await);
            unknown.push(time(&auth, "joan@example.com").await);
        } else {
            unknown.push(time(&auth, "joan@example.com").await);
            wrong.push(time(&auth, "jane@example.com").await);
        }
    }
    let chance = mann_whitney(&wrong, &unknown);
    let (wrong, unknown) = (median(wrong), median(unknown));
    let gap = wrong.abs_diff(unknown);
    let small = gap < Duration::from_millis(5) && gap * 20 < wrong.max(unknown);
    assert!(chance > 0.01 || small, "p = {chance}, {wrong:?} and {unknown:?}");
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The Mann-Whitney U test, two-sided, by its normal approximation: how likely two samples of one
/// distribution are this far apart.
fn mann_whitney(a: &[Duration], b: &[Duration]) -> f64 {
    let (n, m) = (a.len() as f64, b.len() as f64);
    let above = |x: &Duration| {
        b.iter()
            .map(|y| {
                if x > y {
                    1.0
                } else if x == y {
                    0.5
                } else {
                    0.0
                }
            })
            .sum::<f64>()
    };
    let u: f64 = a.iter().map(above).sum();
    let z = (u - n * m / 2.0).abs() / (n * m * (n + m + 1.0) / 12.0).sqrt();
    erfc(z / std::f64::consts::SQRT_2)
}

/// The complementary error function of what is not negative (Abramowitz and Stegun 7.1.26).
fn erfc(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let terms = [1.061_405_429, -1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592];
    terms.iter().fold(0.0, |sum, term| (sum + term) * t) * (-x * x).exp()
}

#[test]
fn the_statistics_tell_samples_apart() {
    let sample = |from: u64| (from..from + 200).map(Duration::from_micros).collect::<Vec<_>>();
    assert!(mann_whitney(&sample(0), &sample(0)) > 0.99);
    assert!(mann_whitney(&sample(0), &sample(10)) > 0.01);
    assert!(mann_whitney(&sample(0), &sample(50)) < 0.01);
    assert!((erfc(1.96 / std::f64::consts::SQRT_2) - 0.05).abs() < 1e-4);
}
