//! Amounts of resources: `100m`, `1.5Gi`, `2e3`.
//!
//! Source: API reference, `resource.Quantity`. Values are kept as whole
//! billionths, so that nothing that Kubernetes can express is rounded.

use std::fmt;
use std::str::FromStr;

const NANOS_PER_UNIT: i128 = 1_000_000_000;

/// Largest magnitude, in units: upstream caps at 2^63 - 1 and so do we.
const MAX_UNITS: i128 = i64::MAX as i128;

/// A fixed-point amount with the notation it was written in.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// Powers of 1024: `Ki`, `Mi`, …
    BinarySi,
    /// Powers of 1000: `m`, `k`, `M`, …
    DecimalSi,
    /// `1e3`.
    DecimalExponent,
}

/// The text is not a quantity. Display is upstream's text, which clients know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct ParseQuantityError;

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// `units` whole units, written in decimal notation.
    pub fn from_units(units: i64) -> Self {
        Self { nanos: i128::from(units) * NANOS_PER_UNIT, format: Format::DecimalSi }
    }

    /// `bytes`, written in binary notation.
    pub fn from_bytes(bytes: i64) -> Self {
        Self { nanos: i128::from(bytes) * NANOS_PER_UNIT, format: Format::BinarySi }
    }

    /// Thousandths, as the scheduler counts CPU.
    pub fn from_millis(millis: i64) -> Self {
        Self { nanos: i128::from(millis) * (NANOS_PER_UNIT / 1000), format: Format::DecimalSi }
    }

    /// Whole units, rounded away from zero as upstream's `Value()`.
    pub fn value(self) -> i64 {
        self.scaled(NANOS_PER_UNIT)
    }

    /// Thousandths, rounded away from zero as upstream's `MilliValue()`; saturates.
    pub fn milli_value(self) -> i64 {
        self.scaled(NANOS_PER_UNIT / 1000)
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// The sum, in the notation of `self`; saturates at the largest magnitude.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        let limit = MAX_UNITS * NANOS_PER_UNIT;
        Self { nanos: (self.nanos + other.nanos).clamp(-limit, limit), format: self.format }
    }

    fn scaled(self, unit: i128) -> i64 {
        let quotient = self.nanos / unit;
        let rounded = if self.nanos % unit == 0 { quotient } else { quotient + self.nanos.signum() };
        i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, ParseQuantityError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let number_end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(number_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(ParseQuantityError);
        }
        let (scale, format) = scale_of(suffix)?;
        let magnitude = scale_number(whole, fraction, scale);
        Ok(Self { nanos: if negative { -magnitude } else { magnitude }, format })
    }
}

#[derive(Clone, Copy)]
enum Scale {
    /// Times 2 to this power.
    Binary(u32),
    /// Times 10 to this power.
    Decimal(i32),
}

fn scale_of(suffix: &str) -> Result<(Scale, Format), ParseQuantityError> {
    let decimal = |power| Ok((Scale::Decimal(power), Format::DecimalSi));
    let binary = |power| Ok((Scale::Binary(power), Format::BinarySi));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E']).ok_or(ParseQuantityError)?;
            let power: i32 = exponent.parse().map_err(|_| ParseQuantityError)?;
            Ok((Scale::Decimal(power.clamp(-64, 64)), Format::DecimalExponent))
        }
    }
}

/// Nanos of `whole.fraction` times `scale`, rounded up and capped as upstream does.
fn scale_number(whole: &str, fraction: &str, scale: Scale) -> i128 {
    let cap = MAX_UNITS * NANOS_PER_UNIT;
    // More than 27 digits on either side cannot matter: the cap and the
    // billionth lie well inside.
    let fraction = &fraction[..fraction.len().min(27)];
    let mut digits: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        digits = match digits.checked_mul(10).and_then(|value| value.checked_add(i128::from(digit - b'0'))) {
            Some(value) => value,
            None => return cap,
        };
    }
    let (factor, power) = match scale {
        Scale::Binary(bits) => (1i128 << bits, 9),
        Scale::Decimal(power) => (1, 9 + power),
    };
    let Some(product) = digits.checked_mul(factor) else { return cap };
    let power = power - i32::try_from(fraction.len()).expect("at most 27");
    let nanos = if power >= 0 {
        10i128.checked_pow(power.unsigned_abs()).and_then(|tens| product.checked_mul(tens)).unwrap_or(cap)
    } else {
        match 10i128.checked_pow(power.unsigned_abs()) {
            Some(tens) => product / tens + i128::from(product % tens != 0),
            None => i128::from(product != 0),
        }
    };
    nanos.min(cap)
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that keeps it whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let whole_units = self.nanos % NANOS_PER_UNIT == 0;
        if self.format == Format::BinarySi && whole_units && self.nanos.abs() >= 1024 * NANOS_PER_UNIT {
            let mut value = self.nanos / NANOS_PER_UNIT;
            let mut suffix = "";
            for next in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
                if value % 1024 != 0 {
                    break;
                }
                value /= 1024;
                suffix = next;
            }
            return write!(f, "{value}{suffix}");
        }
        let mut value = self.nanos;
        let mut power = -9;
        while value % 1000 == 0 && power < 18 {
            value /= 1000;
            power += 3;
        }
        if self.format == Format::DecimalExponent {
            return if power == 0 { write!(f, "{value}") } else { write!(f, "{value}e{power}") };
        }
        let suffix = match power {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            0 => "",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            _ => "E",
        };
        write!(f, "{value}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, milli_value: i64, canonical: &str) {
        let quantity: Quantity = text.parse().unwrap_or_else(|_| panic!("{text} parses"));
        assert_eq!(quantity.milli_value(), milli_value, "{text}");
        assert_eq!(quantity.to_string(), canonical, "{text}");
    }

    #[test]
    fn quantities_have_one_canonical_form() {
        check("0", 0, "0");
        check("100m", 100, "100m");
        check("0.1", 100, "100m");
        check("1.5", 1500, "1500m");
        check("2000m", 2000, "2");
        check("1Gi", 1_073_741_824_000, "1Gi");
        check("1024Mi", 1_073_741_824_000, "1Gi");
        check("1.5Gi", 1_610_612_736_000, "1536Mi");
        check("100Ki", 102_400_000, "100Ki");
        check("1e3", 1_000_000, "1e3");
        check("12e-1", 1200, "1200e-3");
        check("-5", -5000, "-5");
        check("1000", 1_000_000, "1k");
        check("0.0000000001", 1, "1n");
        check(".5", 500, "500m");
    }

    #[test]
    fn huge_numbers_are_capped() {
        let huge: Quantity = "99999999999999999999999999999999999999999999E".parse().unwrap();
        assert_eq!(huge.value(), i64::MAX);
        let sum = huge.saturating_add(huge);
        assert_eq!(sum.value(), i64::MAX);
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "-", "m", "1.2.3", "1x", "1 Gi", "e3", "1e", "1ki", "0x10"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }
}
