// Package plan decides. From what was observed, what is wanted and the policy (package model), Next names the one next action
// and why. Package safety, written independently of Next, says whether an action is safe.
//
// The package is pure: it reads no clock, disk or network and rolls no dice. Time comes in as Observation.Now,
// chance as Observation.FreshToken. Lists are sorted, so that the same observation always gives the same decision.
package plan
