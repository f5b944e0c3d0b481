// Package broken breaks the code on purpose, in one place after the other, and looks whether a test finds it: the simulation, or the tests
// of a package. testdata/variants.txt says what is broken, where, and what has to find it. It never changes the tree: the compiler is
// given the changed files in place of the real ones.
package broken
