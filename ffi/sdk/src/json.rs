//! Handlers, values and calls as JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Ctx, Error, Result, Txn, Value};

/// Turns a function from JSON to JSON into a handler.
///
/// ```no_run
/// # use halfmoon::{App, Ctx};
/// #[derive(serde::Deserialize)]
/// struct Greeting { name: String }
///
/// fn greet(_ctx: &mut Ctx, input: Greeting) -> halfmoon::Result<String> {
///     Ok(format!("hello, {}", input.name))
/// }
///
/// halfmoon::serve(App::new().function("greet", halfmoon::json(greet)))
/// ```
pub fn json<In, Out, F>(
    function: F,
) -> impl Fn(&mut Ctx, &[u8]) -> Result<Vec<u8>> + Send + Sync + 'static
where
    In: DeserializeOwned,
    Out: Serialize,
    F: Fn(&mut Ctx, In) -> Result<Out> + Send + Sync + 'static,
{
    move |ctx, input| {
        let input = serde_json::from_slice(input).map_err(|why| Error::Form {
            wanted: "input of this function",
            why: why.to_string(),
        })?;
        encode(&function(ctx, input)?)
    }
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(value)?)
}

impl Value {
    /// The value, parsed.
    ///
    /// # Errors
    /// [`Error::Form`] if it is not JSON of that type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(self)
            .map_err(|why| Error::Form { wanted: "JSON as expected", why: why.to_string() })
    }
}

impl From<serde_json::Error> for Error {
    fn from(why: serde_json::Error) -> Self {
        Self::Form { wanted: "JSON", why: why.to_string() }
    }
}

/// Operations on JSON.
impl Ctx {
    /// Reads an object.
    pub fn read_json<T: DeserializeOwned>(
        &mut self,
        table: &str,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<T>> {
        self.read(table, key)?.map(|value| value.json()).transpose()
    }

    /// Writes an object.
    pub fn write_json(
        &mut self,
        table: &str,
        key: impl AsRef<[u8]>,
        value: &impl Serialize,
    ) -> Result<()> {
        self.write(table, key, encode(value)?)
    }

    /// Calls a function and waits for its result.
    pub fn call_json<T: DeserializeOwned>(
        &mut self,
        function: &str,
        input: &impl Serialize,
    ) -> Result<T> {
        self.call(function, encode(input)?)?.json()
    }

    /// Records what `effect` returns: see [`Ctx::side_effect`].
    pub fn side_effect_json<T: Serialize + DeserializeOwned>(
        &mut self,
        effect: impl FnOnce() -> T,
    ) -> Result<T> {
        // What cannot be written as JSON is a mistake of the program, found at the first attempt.
        let recorded =
            self.side_effect(|| serde_json::to_vec(&effect()).expect("the result is JSON"))?;
        recorded.json()
    }
}

/// Operations on JSON.
impl Txn<'_> {
    /// Reads an object.
    pub fn read_json<T: DeserializeOwned>(
        &mut self,
        table: &str,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<T>> {
        self.read(table, key)?.map(|value| value.json()).transpose()
    }

    /// Writes an object when the transaction commits.
    pub fn write_json(
        &mut self,
        table: &str,
        key: impl AsRef<[u8]>,
        value: &impl Serialize,
    ) -> Result<()> {
        self.write(table, key, encode(value)?)
    }
}
