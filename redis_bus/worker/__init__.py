"""The serving side: takes jobs, runs them and tells what came of them."""
