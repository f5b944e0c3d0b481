package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// shellName is the name under which go-runner answers for the shell that the image doesn't have.
const shellName = "sh"

// shellForm is the one command line that is obeyed under that name, as kOps up to 1.35.1 writes it.
const shellForm = `-c "mkfifo PIPE; (tee -a LOG < PIPE & ) ; exec /etcd-manager|/ko-app/etcd-manager ARGUMENTS > PIPE 2>&1"`

// errRefused: the command line is not of that form.
var errRefused = errors.New("not the command line that this image is started with")

// isShell tells whether the program was started as sh.
func isShell(argv0 string) bool { return filepath.Base(argv0) == shellName }

// managers are the programs that the form may start.
func managers() []string { return []string{"/etcd-manager", "/ko-app/etcd-manager"} }

// parseShell turns the arguments of sh into what go-runner does: the same as the pipe and tee would.
func parseShell(args []string) (options, error) {
	if len(args) != 2 || args[0] != "-c" {
		return options{}, fmt.Errorf("%w: it has the arguments %q", errRefused, args)
	}
	tokens, err := lex(args[1])
	if err != nil {
		return options{}, fmt.Errorf("%w: %w", errRefused, err)
	}
	p := shellParser{rest: tokens}
	p.want(word("mkfifo"))
	pipe := p.word("a path of the pipe")
	p.want(operator(";"), operator("("), word("tee"), word("-a"))
	log := p.word("a path of the log file")
	p.want(operator("<"), word(pipe), operator("&"), operator(")"), operator(";"), word("exec"))
	program := p.word("a program")
	if p.err == nil && !slices.Contains(managers(), program) {
		p.err = fmt.Errorf("it starts %q, not one of %s", program, strings.Join(managers(), ", "))
	}
	command := append([]string{program}, p.words()...)
	p.want(operator(">"), word(pipe), operator("2>&1"))
	if p.err == nil && len(p.rest) > 0 {
		p.err = fmt.Errorf("%s stands after its end", p.rest[0])
	}
	if p.err != nil {
		return options{}, fmt.Errorf("%w: %w", errRefused, p.err)
	}
	return options{logFile: log, logMayFail: true, alsoStdout: true, redirectStderr: true, command: command}, nil
}

// token is a word, or an operator of the shell.
type token struct {
	text     string
	operator bool
}

func word(text string) token     { return token{text: text} }
func operator(text string) token { return token{text: text, operator: true} }

func (t token) String() string { return fmt.Sprintf("%q", t.text) }

// shellParser takes tokens from the front; the first that doesn't fit ends it.
type shellParser struct {
	rest []token
	err  error
}

func (p *shellParser) want(tokens ...token) {
	for _, t := range tokens {
		switch {
		case p.err != nil:
		case len(p.rest) == 0:
			p.err = fmt.Errorf("it ends where %s should stand", t)
		case p.rest[0] != t:
			p.err = fmt.Errorf("%s stands where %s should", p.rest[0], t)
		default:
			p.rest = p.rest[1:]
		}
	}
}

// word takes one word that isn't empty.
func (p *shellParser) word(what string) string {
	switch {
	case p.err != nil:
	case len(p.rest) == 0:
		p.err = fmt.Errorf("it ends where %s should stand", what)
	case p.rest[0].operator || p.rest[0].text == "":
		p.err = fmt.Errorf("%s stands where %s should", p.rest[0], what)
	default:
		text := p.rest[0].text
		p.rest = p.rest[1:]
		return text
	}
	return ""
}

// words takes all words up to the next operator.
func (p *shellParser) words() []string {
	var list []string
	for p.err == nil && len(p.rest) > 0 && !p.rest[0].operator {
		list = append(list, p.rest[0].text)
		p.rest = p.rest[1:]
	}
	return list
}

// lex splits a command line as a shell does. What a shell would expand is an error: nothing here expands anything.
func lex(s string) ([]token, error) {
	var tokens []token
	for {
		s = strings.TrimLeft(s, " \t")
		switch {
		case s == "":
			return tokens, nil
		case strings.HasPrefix(s, "2>&1"):
			tokens, s = append(tokens, operator("2>&1")), s[len("2>&1"):]
		case strings.IndexByte(operators, s[0]) >= 0:
			tokens, s = append(tokens, operator(s[:1])), s[1:]
		case s[0] == '#' || s[0] == '~':
			return nil, fmt.Errorf("a word begins with %q", s[:1])
		default:
			text, rest, err := lexWord(s)
			if err != nil {
				return nil, err
			}
			tokens, s = append(tokens, word(text)), rest
		}
	}
}

// operators end a word. A line break is one, since it ends a command.
const operators = ";()<>&|\n\r"

// lexWord reads one word with its quotes.
func lexWord(s string) (text, rest string, err error) {
	var b strings.Builder
	quote := byte(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == '\'' && c != '\'':
			b.WriteByte(c)
		case c == quote:
			quote = 0
		case c == '$' || c == '`':
			return "", "", fmt.Errorf("it has %q, which only a shell could expand", c)
		case c == '\\':
			if i++; i == len(s) {
				return "", "", errors.New("it ends with a backslash")
			}
			if quote == '"' && strings.IndexByte("$`\"\\\n", s[i]) < 0 {
				b.WriteByte(c)
			}
			b.WriteByte(s[i])
		case quote != 0:
			b.WriteByte(c)
		case c == '\'' || c == '"':
			quote = c
		case c == ' ' || c == '\t' || strings.IndexByte(operators, c) >= 0:
			return b.String(), s[i:], nil
		default:
			b.WriteByte(c)
		}
	}
	if quote != 0 {
		return "", "", fmt.Errorf("a %c is not closed", quote)
	}
	return b.String(), "", nil
}
