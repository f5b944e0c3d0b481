// Package safety says whether an action is safe for what was observed.
//
// Check knows no rules and no order: for each kind of action it lists what must never be so when it is done. It reads the
// same observation as the planner and shares nothing else with it, so that a mistake has to be made twice. It is pure.
package safety
