// Package mutate tests the tests: it makes one small change after the other to the code of a package, and looks whether the package's tests
// notice. A mutant that survives shows a condition that no test depends on. It never changes the tree: the compiler is given the changed
// file in place of the real one.
package mutate
