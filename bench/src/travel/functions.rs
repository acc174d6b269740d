//! The functions themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use halfmoon::{App, Ctx, Error, Function, Result, Table};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::data::{self, Candidate, HOTELS, Place, Profile, Rate};
use super::{Criterion, Request};
use crate::audit::{CAPACITY, Row};

/// Hotels that a search or a recommendation names.
const NAMED: usize = 5;
/// How long the card issuer takes to say yes, between the room and the seat.
const AUTHORISATION: Duration = Duration::from_millis(2);

/// The application, ready to serve.
#[must_use]
pub fn app() -> App {
    App::new()
        .table(Table::new("places"))
        .table(Table::new("rates"))
        .table(Table::new("profiles"))
        .table(Table::new("users"))
        .table(Table::new("rooms").transactional())
        .table(Table::new("seats").transactional())
        .table(Table::new("reservations").transactional())
        .table(Table::new("orders"))
        .function(Function::new("frontend", json(frontend)))
        .function(Function::new("search", json(search)).read_only())
        .function(Function::new("geo", json(geo)).read_only())
        .function(Function::new("rate", json(rate)).read_only())
        .function(Function::new("profile", json(profile)).read_only())
        .function(Function::new("recommendation", json(recommendation)).read_only())
        .function(Function::new("user", json(user)).read_only())
        .function(Function::new("reserve", json(reserve)))
        .function(Function::new("hotel", json(hotel)))
        .function(Function::new("flight", json(flight)))
        .function(Function::new("order", json(order)))
        .function(Function::new("populate", json(populate)))
        .function(Function::new("inspect", json(inspect)).read_only())
}

/// A function of JSON values as a function of bytes.
fn json<I: DeserializeOwned, O: Serialize>(
    function: fn(&mut Ctx, I) -> Result<O>,
) -> impl Fn(&mut Ctx, &[u8]) -> Result<Vec<u8>> {
    move |ctx, input| {
        let input = serde_json::from_slice(input).map_err(refuse)?;
        serde_json::to_vec(&function(ctx, input)?).map_err(refuse)
    }
}

/// An answer to the caller's mistake.
fn refuse(why: impl std::fmt::Display) -> Error {
    Error::application(why.to_string())
}

fn get<T: DeserializeOwned>(ctx: &mut Ctx, table: &str, key: &str) -> Result<Option<T>> {
    match ctx.read(table, key.as_bytes())? {
        Some(value) => serde_json::from_slice(&value).map(Some).map_err(refuse),
        None => Ok(None),
    }
}

fn put<T: Serialize>(ctx: &mut Ctx, table: &str, key: &str, value: &T) -> Result<()> {
    ctx.write(table, key.as_bytes(), &serde_json::to_vec(value).map_err(refuse)?)
}

fn call<O: DeserializeOwned>(ctx: &mut Ctx, function: &str, input: &Value) -> Result<O> {
    let output = ctx.call(function, input.to_string().as_bytes())?;
    serde_json::from_slice(&output).map_err(refuse)
}

fn frontend(ctx: &mut Ctx, request: Request) -> Result<Value> {
    match request {
        Request::Search { lat, lon } => call(ctx, "search", &json!({ "lat": lat, "lon": lon })),
        Request::Recommend { by } => call(ctx, "recommendation", &json!({ "by": by })),
        Request::Login { user, password } => {
            call(ctx, "user", &json!({ "user": user, "password": password }))
        }
        Request::Reserve { id, hotel, flight, atomic } => {
            let input = json!({ "id": id, "hotel": hotel, "flight": flight, "atomic": atomic });
            call(ctx, "reserve", &input)
        }
    }
}

#[derive(Deserialize)]
struct At {
    lat: f64,
    lon: f64,
}

fn search(ctx: &mut Ctx, at: At) -> Result<Value> {
    let near: Vec<u32> = call(ctx, "geo", &json!({ "lat": at.lat, "lon": at.lon }))?;
    let rates: Vec<Rate> = call(ctx, "rate", &json!(near))?;
    let profiles: Vec<Profile> = call(ctx, "profile", &json!(near))?;
    Ok(json!({ "rates": rates, "hotels": profiles }))
}

fn geo(ctx: &mut Ctx, at: At) -> Result<Vec<u32>> {
    let mut places: Vec<Place> = get(ctx, "places", "all")?.unwrap_or_default();
    let distance = |place: &Place| (place.lat - at.lat).powi(2) + (place.lon - at.lon).powi(2);
    places.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
    Ok(places.iter().take(NAMED).map(|place| place.hotel).collect())
}

fn each<T: DeserializeOwned>(ctx: &mut Ctx, table: &str, hotels: &[u32]) -> Result<Vec<T>> {
    let mut found = Vec::with_capacity(hotels.len());
    for hotel in hotels {
        found.extend(get(ctx, table, &hotel.to_string())?);
    }
    Ok(found)
}

fn rate(ctx: &mut Ctx, hotels: Vec<u32>) -> Result<Vec<Rate>> {
    each(ctx, "rates", &hotels)
}

fn profile(ctx: &mut Ctx, hotels: Vec<u32>) -> Result<Vec<Profile>> {
    each(ctx, "profiles", &hotels)
}

#[derive(Deserialize)]
struct By {
    by: Criterion,
}

fn recommendation(ctx: &mut Ctx, by: By) -> Result<Value> {
    let candidates: Vec<Candidate> = get(ctx, "places", "candidates")?.unwrap_or_default();
    let profiles: Vec<Profile> = call(ctx, "profile", &json!(by.by.best(candidates, NAMED)))?;
    Ok(json!({ "hotels": profiles }))
}

#[derive(Deserialize)]
struct Credentials {
    user: u32,
    password: String,
}

fn user(ctx: &mut Ctx, credentials: Credentials) -> Result<Value> {
    let stored: Option<u64> = get(ctx, "users", &credentials.user.to_string())?;
    let typed = data::digest(credentials.user, &credentials.password);
    Ok(json!({ "welcome": stored == Some(typed) }))
}

#[derive(Deserialize)]
struct Reservation {
    id: String,
    hotel: u32,
    flight: u32,
    atomic: bool,
}

fn reserve(ctx: &mut Ctx, wanted: Reservation) -> Result<Value> {
    let row = if wanted.atomic { take_both(ctx, &wanted)? } else { take_in_turn(ctx, &wanted)? };
    if row.is_some() {
        ctx.spawn("order", json!({ "id": wanted.id }).to_string().as_bytes())?;
    }
    Ok(json!({ "row": row }))
}

/// The room, the seat and the row, all or none, in one transaction.
fn take_both(ctx: &mut Ctx, wanted: &Reservation) -> Result<Option<Row>> {
    std::thread::sleep(AUTHORISATION);
    let (hotel, flight) = (wanted.hotel.to_string(), wanted.flight.to_string());
    ctx.transaction(|txn| {
        let room: u32 = get(txn, "rooms", &hotel)?.unwrap_or(0);
        let seat: u32 = get(txn, "seats", &flight)?.unwrap_or(0);
        if room == 0 || seat == 0 {
            return Ok(None);
        }
        put(txn, "rooms", &hotel, &(room - 1))?;
        put(txn, "seats", &flight, &(seat - 1))?;
        let row = Row { hotel: wanted.hotel, room, flight: wanted.flight, seat };
        put(txn, "reservations", &wanted.id, &row)?;
        Ok(Some(row))
    })
}

/// One after the other: what a program without transactions does.
fn take_in_turn(ctx: &mut Ctx, wanted: &Reservation) -> Result<Option<Row>> {
    let room: u32 = call(ctx, "hotel", &json!({ "item": wanted.hotel }))?;
    if room == 0 {
        return Ok(None);
    }
    std::thread::sleep(AUTHORISATION);
    let seat: u32 = call(ctx, "flight", &json!({ "item": wanted.flight }))?;
    if seat == 0 {
        return Ok(None);
    }
    let row = Row { hotel: wanted.hotel, room, flight: wanted.flight, seat };
    put(ctx, "reservations", &wanted.id, &row)?;
    Ok(Some(row))
}

#[derive(Deserialize)]
struct Take {
    item: u32,
}

/// Takes one place, and says which; 0 when none is left.
fn take(ctx: &mut Ctx, table: &str, item: u32) -> Result<u32> {
    let left: u32 = get(ctx, table, &item.to_string())?.unwrap_or(0);
    if left > 0 {
        put(ctx, table, &item.to_string(), &(left - 1))?;
    }
    Ok(left)
}

fn hotel(ctx: &mut Ctx, take_one: Take) -> Result<u32> {
    take(ctx, "rooms", take_one.item)
}

fn flight(ctx: &mut Ctx, take_one: Take) -> Result<u32> {
    take(ctx, "seats", take_one.item)
}

#[derive(Deserialize)]
struct Order {
    id: String,
}

/// Counts how often the order was processed: it must be once.
fn order(ctx: &mut Ctx, order: Order) -> Result<u32> {
    let before: u32 = get(ctx, "orders", &order.id)?.unwrap_or(0);
    put(ctx, "orders", &order.id, &(before + 1))?;
    Ok(before + 1)
}

#[derive(Deserialize)]
struct Part {
    part: u32,
}

/// Writes one part of every table.
fn populate(ctx: &mut Ctx, part: Part) -> Result<u32> {
    if part.part == 0 {
        put(ctx, "places", "all", &data::places())?;
        put(ctx, "places", "candidates", &data::candidates())?;
    }
    let mine = |item: &u32| item % super::POPULATE_PARTS == part.part;
    for item in (0..HOTELS).filter(mine) {
        let key = item.to_string();
        put(ctx, "rates", &key, &data::rate(item))?;
        put(ctx, "profiles", &key, &data::profile(item))?;
        put(ctx, "rooms", &key, &CAPACITY)?;
    }
    for flight in (0..super::FLIGHTS).filter(mine) {
        put(ctx, "seats", &flight.to_string(), &CAPACITY)?;
    }
    for user in (0..super::USERS).filter(mine) {
        put(ctx, "users", &user.to_string(), &data::digest(user, &data::password(user)))?;
    }
    Ok(part.part)
}

#[derive(Deserialize)]
struct Inspect {
    #[serde(default)]
    capacity: bool,
    #[serde(default)]
    ids: Vec<String>,
}

/// What the audit reads: how much is left of everything, or the rows and orders of some requests.
fn inspect(ctx: &mut Ctx, wanted: Inspect) -> Result<Value> {
    let (mut rooms, mut seats) = (BTreeMap::new(), BTreeMap::new());
    if wanted.capacity {
        for hotel in 0..HOTELS {
            let left: Option<u32> = get(ctx, "rooms", &hotel.to_string())?;
            rooms.extend(left.map(|left| (hotel, left)));
        }
        for flight in 0..super::FLIGHTS {
            let left: Option<u32> = get(ctx, "seats", &flight.to_string())?;
            seats.extend(left.map(|left| (flight, left)));
        }
    }
    let (mut rows, mut orders) = (BTreeMap::new(), BTreeMap::new());
    for id in wanted.ids {
        let row: Option<Row> = get(ctx, "reservations", &id)?;
        let order: Option<u32> = get(ctx, "orders", &id)?;
        rows.extend(row.map(|row| (id.clone(), row)));
        orders.extend(order.map(|order| (id, order)));
    }
    Ok(json!({ "rooms_left": rooms, "seats_left": seats, "rows": rows, "orders": orders }))
}
