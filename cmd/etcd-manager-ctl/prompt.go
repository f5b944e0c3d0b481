package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"
)

// confirm has the operator type a word before something that can't be taken back easily. It returns nil if that happened, or if yes
// says that it isn't needed; where nobody can be asked, yes is needed.
func (a *app) confirm(ctx context.Context, yes bool, word, what string) error {
	if yes {
		return nil
	}
	if !a.person {
		return usagef("nobody can be asked here: look at what is written above, then add --yes to %s", what)
	}
	fmt.Fprintf(a.errOut, "Type %q to %s: ", word, what)
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(a.in).ReadString('\n') // an end without an answer is a no
		answer <- strings.TrimSpace(line)
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(a.errOut)
		return &outcomeError{exitFailure, "interrupted: nothing was done"}
	case typed := <-answer:
		if typed != word {
			return &outcomeError{exitFailure, fmt.Sprintf("the answer was not %q: nothing was done", word)}
		}
		return nil
	}
}
