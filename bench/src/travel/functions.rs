//! The functions themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use halfmoon::{App, Ctx, Function, Result, Table, json as handler};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::data::{self, Candidate, FLIGHTS, HOTELS, Place, Profile, Rate, USERS};
use super::{Criterion, POPULATE_PARTS, Request};
use crate::audit::{CAPACITY, Row};

/// Hotels that a search or a recommendation names.
const NAMED: usize = 5;
/// How long the card issuer takes to say yes, between the room and the seat.
const AUTHORISATION: Duration = Duration::from_millis(2);

/// The tables that a reservation writes.
struct Tables {
    rooms: &'static str,
    seats: &'static str,
    reservations: &'static str,
}

/// Those of transactions are pinned to `halfmoon-read`; the others follow the deployment's protocol.
const fn tables(atomic: bool) -> Tables {
    if atomic {
        Tables { rooms: "rooms", seats: "seats", reservations: "reservations" }
    } else {
        Tables { rooms: "plain_rooms", seats: "plain_seats", reservations: "plain_reservations" }
    }
}

/// The application, ready to serve.
#[must_use]
pub fn app() -> App {
    let mut app = App::new();
    for table in ["places", "rates", "profiles", "users", "orders"] {
        app = app.table(Table::new(table));
    }
    let (atomic, plain) = (tables(true), tables(false));
    for table in [atomic.rooms, atomic.seats, atomic.reservations] {
        app = app.table(Table::new(table).transactional());
    }
    for table in [plain.rooms, plain.seats, plain.reservations] {
        app = app.table(Table::new(table));
    }
    app.function("frontend", handler(frontend))
        .function_with(Function::new("search", handler(search)).read_only())
        .function_with(Function::new("geo", handler(geo)).read_only())
        .function_with(Function::new("rate", handler(rate)).read_only())
        .function_with(Function::new("profile", handler(profile)).read_only())
        .function_with(Function::new("recommendation", handler(recommendation)).read_only())
        .function_with(Function::new("user", handler(user)).read_only())
        .function("reserve", handler(reserve))
        .function("hotel", handler(hotel))
        .function("flight", handler(flight))
        .function("order", handler(order))
        .function("populate", handler(populate))
        .function_with(Function::new("inspect", handler(inspect)).read_only())
}

fn frontend(ctx: &mut Ctx, request: Request) -> Result<Value> {
    match request {
        Request::Search { lat, lon } => ctx.call_json("search", &json!({ "lat": lat, "lon": lon })),
        Request::Recommend { by } => ctx.call_json("recommendation", &json!({ "by": by })),
        Request::Login { user, password } => {
            ctx.call_json("user", &json!({ "user": user, "password": password }))
        }
        Request::Reserve { id, hotel, flight, atomic } => {
            let input = json!({ "id": id, "hotel": hotel, "flight": flight, "atomic": atomic });
            ctx.call_json("reserve", &input)
        }
    }
}

#[derive(Deserialize)]
struct At {
    lat: f64,
    lon: f64,
}

fn search(ctx: &mut Ctx, at: At) -> Result<Value> {
    let near: Vec<u32> = ctx.call_json("geo", &json!({ "lat": at.lat, "lon": at.lon }))?;
    let rates: Vec<Rate> = ctx.call_json("rate", &json!(near))?;
    let profiles: Vec<Profile> = ctx.call_json("profile", &json!(near))?;
    Ok(json!({ "rates": rates, "hotels": profiles }))
}

fn geo(ctx: &mut Ctx, at: At) -> Result<Vec<u32>> {
    let mut places: Vec<Place> = ctx.read_json("places", "all")?.unwrap_or_default();
    let distance = |place: &Place| (place.lat - at.lat).powi(2) + (place.lon - at.lon).powi(2);
    places.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
    Ok(places.iter().take(NAMED).map(|place| place.hotel).collect())
}

fn each<T: DeserializeOwned>(ctx: &mut Ctx, table: &str, hotels: &[u32]) -> Result<Vec<T>> {
    let mut found = Vec::with_capacity(hotels.len());
    for hotel in hotels {
        found.extend(ctx.read_json(table, hotel.to_string())?);
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
    let candidates: Vec<Candidate> = ctx.read_json("places", "candidates")?.unwrap_or_default();
    let profiles: Vec<Profile> = ctx.call_json("profile", &json!(by.by.best(candidates, NAMED)))?;
    Ok(json!({ "hotels": profiles }))
}

#[derive(Deserialize)]
struct Credentials {
    user: u32,
    password: String,
}

fn user(ctx: &mut Ctx, credentials: Credentials) -> Result<Value> {
    let stored: Option<u64> = ctx.read_json("users", credentials.user.to_string())?;
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
        ctx.spawn("order", json!({ "id": wanted.id }).to_string())?;
    }
    Ok(json!({ "row": row }))
}

/// The room, the seat and the row, all or none, in one transaction.
fn take_both(ctx: &mut Ctx, wanted: &Reservation) -> Result<Option<Row>> {
    std::thread::sleep(AUTHORISATION);
    let (hotel, flight) = (wanted.hotel.to_string(), wanted.flight.to_string());
    let tables = tables(true);
    ctx.transaction(|txn| {
        let room: u32 = txn.read_json(tables.rooms, &hotel)?.unwrap_or(0);
        let seat: u32 = txn.read_json(tables.seats, &flight)?.unwrap_or(0);
        if room == 0 || seat == 0 {
            return Ok(None);
        }
        txn.write_json(tables.rooms, &hotel, &(room - 1))?;
        txn.write_json(tables.seats, &flight, &(seat - 1))?;
        let row = Row { hotel: wanted.hotel, room, flight: wanted.flight, seat };
        txn.write_json(tables.reservations, &wanted.id, &row)?;
        Ok(Some(row))
    })
}

/// One after the other: what a program without transactions does.
fn take_in_turn(ctx: &mut Ctx, wanted: &Reservation) -> Result<Option<Row>> {
    let room: u32 = ctx.call_json("hotel", &json!({ "item": wanted.hotel }))?;
    if room == 0 {
        return Ok(None);
    }
    std::thread::sleep(AUTHORISATION);
    let seat: u32 = ctx.call_json("flight", &json!({ "item": wanted.flight }))?;
    if seat == 0 {
        return Ok(None);
    }
    let row = Row { hotel: wanted.hotel, room, flight: wanted.flight, seat };
    ctx.write_json(tables(false).reservations, &wanted.id, &row)?;
    Ok(Some(row))
}

#[derive(Deserialize)]
struct Take {
    item: u32,
}

/// Takes one place, and says which; 0 when none is left.
fn take(ctx: &mut Ctx, table: &str, item: u32) -> Result<u32> {
    let left: u32 = ctx.read_json(table, item.to_string())?.unwrap_or(0);
    if left > 0 {
        ctx.write_json(table, item.to_string(), &(left - 1))?;
    }
    Ok(left)
}

fn hotel(ctx: &mut Ctx, take_one: Take) -> Result<u32> {
    take(ctx, tables(false).rooms, take_one.item)
}

fn flight(ctx: &mut Ctx, take_one: Take) -> Result<u32> {
    take(ctx, tables(false).seats, take_one.item)
}

#[derive(Deserialize)]
struct Order {
    id: String,
}

/// Counts how often the order was processed: it must be once.
fn order(ctx: &mut Ctx, order: Order) -> Result<u32> {
    let before: u32 = ctx.read_json("orders", &order.id)?.unwrap_or(0);
    ctx.write_json("orders", &order.id, &(before + 1))?;
    Ok(before + 1)
}

#[derive(Deserialize)]
struct Part {
    part: u32,
    #[serde(default)]
    atomic: bool,
}

/// Writes one part of every table.
fn populate(ctx: &mut Ctx, part: Part) -> Result<u32> {
    if part.part == 0 {
        ctx.write_json("places", "all", &data::places())?;
        ctx.write_json("places", "candidates", &data::candidates())?;
    }
    let tables = tables(part.atomic);
    let mine = |item: &u32| item % POPULATE_PARTS == part.part;
    for item in (0..HOTELS).filter(mine) {
        let key = item.to_string();
        ctx.write_json("rates", &key, &data::rate(item))?;
        ctx.write_json("profiles", &key, &data::profile(item))?;
        ctx.write_json(tables.rooms, &key, &CAPACITY)?;
    }
    for flight in (0..FLIGHTS).filter(mine) {
        ctx.write_json(tables.seats, flight.to_string(), &CAPACITY)?;
    }
    for user in (0..USERS).filter(mine) {
        let digest = data::digest(user, &data::password(user));
        ctx.write_json("users", user.to_string(), &digest)?;
    }
    Ok(part.part)
}

#[derive(Deserialize)]
struct Inspect {
    #[serde(default)]
    atomic: bool,
    #[serde(default)]
    capacity: bool,
    #[serde(default)]
    ids: Vec<String>,
}

/// What the audit reads: how much is left of everything, or the rows and orders of some requests.
fn inspect(ctx: &mut Ctx, wanted: Inspect) -> Result<Value> {
    let tables = tables(wanted.atomic);
    let (mut rooms, mut seats) = (BTreeMap::new(), BTreeMap::new());
    if wanted.capacity {
        for hotel in 0..HOTELS {
            let left: Option<u32> = ctx.read_json(tables.rooms, hotel.to_string())?;
            rooms.extend(left.map(|left| (hotel, left)));
        }
        for flight in 0..FLIGHTS {
            let left: Option<u32> = ctx.read_json(tables.seats, flight.to_string())?;
            seats.extend(left.map(|left| (flight, left)));
        }
    }
    let (mut rows, mut orders) = (BTreeMap::new(), BTreeMap::new());
    for id in wanted.ids {
        let row: Option<Row> = ctx.read_json(tables.reservations, &id)?;
        let order: Option<u32> = ctx.read_json("orders", &id)?;
        rows.extend(row.map(|row| (id.clone(), row)));
        orders.extend(order.map(|order| (id, order)));
    }
    Ok(json!({ "rooms_left": rooms, "seats_left": seats, "rows": rows, "orders": orders }))
}
