mod hardware;
