package cluster

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// ErrName: something that names a file or directory can't be used as one.
var ErrName = errors.New("not usable as a name")

// maxName leaves room for what is added to a name on the disk.
const maxName = 200

// StagingSuffix ends the name of a data dir that is being built. No token ends so.
const StagingSuffix = ".staging"

// OperationID names an operation: it is the name of the command that is executed, and of the operation's directory on a node.
type OperationID string

// ParseToken checks that a token names one directory and no other. Tokens of other tools have any form that does.
func ParseToken(s string) (Token, error) {
	if err := checkName("cluster token", s); err != nil {
		return "", err
	}
	if strings.HasSuffix(s, StagingSuffix) {
		return "", fmt.Errorf("cluster token %.60q: %w: it ends with %s", s, ErrName, StagingSuffix)
	}
	return Token(s), nil
}

// ParseOperationID checks that an operation's id names one directory and no other.
func ParseOperationID(s string) (OperationID, error) {
	if err := checkName("operation", s); err != nil {
		return "", err
	}
	return OperationID(s), nil
}

// ParseNodeID checks that a node's id, which is also its member's name, is one word that names one file and no other.
func ParseNodeID(s string) (NodeID, error) {
	if err := checkName("node id", s); err != nil {
		return "", err
	}
	if strings.ContainsAny(s, "= ,") {
		return "", fmt.Errorf("node id %.60q: %w: it must be one word, without = and commas", s, ErrName)
	}
	return NodeID(s), nil
}

// CheckNodeName checks the name of a member that somebody else may have chosen: it names one file and no other.
func CheckNodeName(s string) error { return checkName("member", s) }

// checkName tells what keeps s from being one element of a path, on any system, that isn't hidden.
func checkName(what, s string) error {
	var problem string
	switch {
	case s == "":
		problem = "it is empty"
	case strings.HasPrefix(s, "."):
		problem = "it begins with a dot"
	case len(s) > maxName:
		problem = fmt.Sprintf("it is longer than %d bytes", maxName)
	case !utf8.ValidString(s):
		problem = "it is not UTF-8"
	case strings.ContainsAny(s, `/\`):
		problem = "it has a slash or a backslash"
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		problem = "it has a control character"
	default:
		return nil
	}
	return fmt.Errorf("%s %.60q: %w: %s", what, s, ErrName, problem)
}

// UnmarshalText reads a token from a stored object; one that isn't said stays empty, and one that can't name a directory is refused.
func (t *Token) UnmarshalText(text []byte) (err error) {
	*t = ""
	if len(text) > 0 {
		*t, err = ParseToken(string(text))
	}
	return err
}

// UnmarshalText reads an operation's id in the same way.
func (o *OperationID) UnmarshalText(text []byte) (err error) {
	*o = ""
	if len(text) > 0 {
		*o, err = ParseOperationID(string(text))
	}
	return err
}

// UnmarshalText reads a node's id in the same way.
func (n *NodeID) UnmarshalText(text []byte) error {
	*n = NodeID(text)
	if len(text) == 0 {
		return nil
	}
	return CheckNodeName(string(text))
}
