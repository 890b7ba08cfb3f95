//! The movie library that is typed.

/// One row of the sheet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Movie {
    /// Plain ASCII, without the characters that end a label in `sc`.
    pub title: &'static str,
    /// As `title`.
    pub director: &'static str,
    /// Of the first showing.
    pub year: u16,
    /// Tenths of points, of 100.
    pub rating_tenths: u8,
}

const fn movie(title: &'static str, director: &'static str, year: u16, rating_tenths: u8) -> Movie {
    Movie {
        title,
        director,
        year,
        rating_tenths,
    }
}

/// The whole library.
pub const LIBRARY: [Movie; 30] = [
    movie("A Trip to the Moon", "Georges Melies", 1902, 81),
    movie("Sherlock Jr.", "Buster Keaton", 1924, 82),
    movie("The Gold Rush", "Charlie Chaplin", 1925, 81),
    movie("Metropolis", "Fritz Lang", 1927, 83),
    movie("M", "Fritz Lang", 1931, 83),
    movie("Bringing Up Baby", "Howard Hawks", 1938, 78),
    movie("Citizen Kane", "Orson Welles", 1941, 83),
    movie("Casablanca", "Michael Curtiz", 1942, 85),
    movie("Bicycle Thieves", "Vittorio De Sica", 1948, 83),
    movie("The Third Man", "Carol Reed", 1949, 81),
    movie("Rashomon", "Akira Kurosawa", 1950, 82),
    movie("Singin' in the Rain", "Kelly & Donen", 1952, 83),
    movie("Tokyo Story", "Yasujiro Ozu", 1953, 82),
    movie("Seven Samurai", "Akira Kurosawa", 1954, 86),
    movie("Pather Panchali", "Satyajit Ray", 1955, 82),
    movie("12 Angry Men", "Sidney Lumet", 1957, 90),
    movie("Vertigo", "Alfred Hitchcock", 1958, 82),
    movie("The 400 Blows", "Francois Truffaut", 1959, 81),
    movie("Cleo from 5 to 7", "Agnes Varda", 1962, 78),
    movie("8 1/2", "Federico Fellini", 1963, 79),
    movie("2001: A Space Odyssey", "Stanley Kubrick", 1968, 83),
    movie("The Godfather", "Francis Ford Coppola", 1972, 92),
    movie("Jeanne Dielman", "Chantal Akerman", 1975, 77),
    movie("Stalker", "Andrei Tarkovsky", 1979, 81),
    movie("Blade Runner", "Ridley Scott", 1982, 81),
    movie("Ran", "Akira Kurosawa", 1985, 82),
    movie("The Piano", "Jane Campion", 1993, 75),
    movie("Chungking Express", "Wong Kar-wai", 1994, 79),
    movie("Spirited Away", "Hayao Miyazaki", 2001, 86),
    movie("Portrait of a Lady on Fire", "Celine Sciamma", 2019, 81),
];

#[cfg(test)]
mod tests {
    use super::LIBRARY;

    #[test]
    fn every_text_can_be_typed_and_fits_the_line() {
        for movie in LIBRARY {
            for text in [movie.title, movie.director] {
                assert!(
                    text.bytes()
                        .all(|byte| matches!(byte, b' '..=b'~') && !b"\"\\".contains(&byte)),
                    "{text}"
                );
                assert!((1..=50).contains(&text.len()), "{text}");
            }
        }
    }
}
