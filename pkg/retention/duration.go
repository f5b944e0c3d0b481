package retention

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// longUnit gives the units that time.ParseDuration doesn't know; 0 for all others.
func longUnit(b byte) time.Duration {
	switch b {
	case 'd':
		return 24 * time.Hour
	case 'y':
		return 365 * 24 * time.Hour
	}
	return 0
}

// ParseDuration reads a duration such as "168h", "7d", "1y" or "1y6d12h": what time.ParseDuration takes, and d for 24 hours and y for
// 365 days. Negative durations are refused.
func ParseDuration(s string) (time.Duration, error) {
	total, rest := 0.0, strings.TrimSpace(s)
	if rest == "" {
		return 0, errors.New("parse duration: it is empty")
	}
	plain := ""
	for rest != "" {
		n := strings.IndexFunc(rest, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
		if n <= 0 {
			if n < 0 && plain == "" && total == 0 && strings.Trim(rest, "0") == "" {
				return 0, nil
			}
			return 0, fmt.Errorf("parse duration %.60q: want numbers with units such as 168h, 7d or 1y", s)
		}
		if unit := longUnit(rest[n]); unit > 0 {
			v, err := strconv.ParseFloat(rest[:n], 64)
			if err != nil {
				return 0, fmt.Errorf("parse duration %.60q: %.60q is not a number", s, rest[:n])
			}
			total, rest = total+v*float64(unit), rest[n+1:]
			continue
		}
		// Leave it to the standard library, unit and all.
		end := n + strings.IndexFunc(rest[n:]+"0", func(r rune) bool { return r >= '0' && r <= '9' || r == '.' })
		plain, rest = plain+rest[:end], rest[end:]
	}
	if plain != "" {
		d, err := time.ParseDuration(plain)
		if err != nil {
			return 0, fmt.Errorf("parse duration %.60q: want numbers with units such as 168h, 7d or 1y", s)
		}
		total += float64(d)
	}
	if total >= math.MaxInt64 {
		return 0, fmt.Errorf("parse duration %.60q: it is too long", s)
	}
	return time.Duration(total), nil
}

// FormatDuration writes a duration so that ParseDuration reads it, in days where they come out even.
func FormatDuration(d time.Duration) string {
	const day = 24 * time.Hour
	if d > 0 && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	return d.String()
}

// Flag is a flag whose value ParseDuration reads.
type Flag struct{ To *time.Duration }

// String is the value as it is.
func (f Flag) String() string {
	if f.To == nil {
		return ""
	}
	return FormatDuration(*f.To)
}

// Set reads a value.
func (f Flag) Set(s string) error {
	d, err := ParseDuration(s)
	if err != nil {
		return err
	}
	*f.To = d
	return nil
}

// Type names the kind of value in the help of the operator's tool.
func (f Flag) Type() string { return "duration" }
