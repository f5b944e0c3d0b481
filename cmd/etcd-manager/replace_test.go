package main

import (
	"strings"
	"testing"
	"time"
)

// TestLeaderWaits: a node that is ready says what the leader has told it; only a leader that stays silent is named.
func TestLeaderWaits(t *testing.T) {
	if got := leaderWaits("a", "member b is away", time.Second); got != "member b is away" {
		t.Errorf("what the leader has told: %q", got)
	}
	if got := leaderWaits("a", "", time.Second); got != "" {
		t.Errorf("a leader that has just heard of it: %q", got)
	}
	if got := leaderWaits("a", "", time.Minute); !strings.Contains(got, "node a leads") || !strings.Contains(got, "older") {
		t.Errorf("a leader that says nothing: %q", got)
	}
	if got := leaderWaits("", "", time.Minute); !strings.Contains(got, "no manager leads") {
		t.Errorf("nobody leads: %q", got)
	}
}
