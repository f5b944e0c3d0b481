package ui

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestParseWhen(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 30, 0, 0, time.FixedZone("", 3600)) // 11:30 UTC
	for in, want := range map[string]string{
		"2026-11-22T12:03:06Z":      "2026-11-22T12:03:06Z",
		"2026-11-22T12:03:06+02:00": "2026-11-22T10:03:06Z",
		"2026-11-22T12:03:06.25Z":   "2026-11-22T12:03:06.25Z",
		"2026-11-22T12:03:06":       "2026-11-22T12:03:06Z",
		"2026-11-22 12:03:06":       "2026-11-22T12:03:06Z",
		"2026-11-22 12:03:06Z":      "2026-11-22T12:03:06Z",
		"2026-11-22 12:03:06.001Z":  "2026-11-22T12:03:06.001Z",
		"2026-11-22 12:03":          "2026-11-22T12:03:00Z",
		" 09:03:06 ":                "2026-11-22T09:03:06Z",
		"09:03:06.5":                "2026-11-22T09:03:06.5Z",
		"09:03":                     "2026-11-22T09:03:00Z",
		"90m":                       "2026-11-22T10:00:00Z",
		"1h30m":                     "2026-11-22T10:00:00Z",
		"2d":                        "2026-11-20T11:30:00Z",
		"1d12h":                     "2026-11-20T23:30:00Z",
		"0s":                        "2026-11-22T11:30:00Z",
	} {
		have, err := ParseWhen(in, now)
		if err != nil || have.Format(time.RFC3339Nano) != want {
			t.Errorf("%q is %s, %v; want %s", in, have.Format(time.RFC3339Nano), err, want)
		}
	}
	for in, want := range map[string]string{
		"":                     "is not a time",
		"yesterday":            "is not a time",
		"2026-11-22":           "is not a time",
		"2026-13-22 12:03:06":  "is not a time",
		"12":                   "is not a time",
		"xd":                   "is not a time",
		"1d2":                  "is not a time",
		"-5m":                  "in the future",
		"12:03:06":             `"2026-11-21 12:03:06"`,
		"2026-11-22T12:03:06z": "is not a time",
	} {
		_, err := ParseWhen(in, now)
		var usage *UsageError
		if err == nil || !strings.Contains(err.Error(), want) || !errors.As(err, &usage) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}
