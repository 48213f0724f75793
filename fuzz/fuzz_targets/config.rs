//! No text makes the configuration's reader panic: it is read, or every error has a message.
#![no_main]

use headwater::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(errors) = Config::parse(text, std::iter::empty()) {
        assert!(!errors.to_string().is_empty());
    }
});
