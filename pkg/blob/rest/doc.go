// Package rest is what the stores share that are asked by plain HTTP: one client that tries again, counts, shows progress and keeps
// a token, and the meaning of its errors.
//
// It knows no provider: URLs, names of operations and permissions come from the packages that use it. It never sends a
// request twice unless the caller says that this is harmless.
package rest
