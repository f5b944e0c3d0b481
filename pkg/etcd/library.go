package etcd

import (
	"fmt"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// QuietLogger makes etcd's libraries panic where they would end the process; Guard turns that into an error.
func QuietLogger() *zap.Logger {
	return zap.New(zapcore.NewNopCore(), zap.WithFatalHook(zapcore.WriteThenPanic), zap.WithPanicHook(zapcore.WriteThenPanic))
}

// Guard runs f, and turns a panic of etcd's libraries into an error that begins with what.
func Guard(what string, f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s: etcd's library gave up: %v", what, r)
		}
	}()
	return f()
}
