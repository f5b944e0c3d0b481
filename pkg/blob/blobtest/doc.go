// Package blobtest helps to test what stands on blob.Store: the conformance suite that every backend passes (Run), a
// store in memory (NewMemory), and a store that injects faults into another one (NewFaulty).
//
// It is for tests only; nothing that is shipped imports it.
package blobtest
