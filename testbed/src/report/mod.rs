//! What the user is told: text, JSON, JUnit.
