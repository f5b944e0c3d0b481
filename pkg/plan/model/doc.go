// Package model is what the planner and its safety check both speak of: the observation, the policy, and the actions.
//
// It decides nothing. What one of the two concludes from an observation is its own, so that a mistake has to be made twice
// before it does harm: a helper that both would use doesn't belong here.
package model
