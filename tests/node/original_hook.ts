function useClaudeWebSocket() {
  const [messages, setMessages] = useState([]);
  const [isConnected, setIsConnected] = useState(false);
  const wsRef = useRef(null);
  
  const connect = useCallback((prompt, meta) => {
    if (wsRef.current) {
      wsRef.current.close();
    }
    
    const ws = new WebSocket('ws://localhost:3000/ws/claude');
    wsRef.current = ws;
    
    ws.onopen = () => {
      setIsConnected(true);
      // Send prompt after info message
      setTimeout(() => {
        ws.send(JSON.stringify({ prompt, meta }));
      }, 100);
    };
    
    ws.onmessage = (event) => {
      // Parse and handle messages
      handleMessage(event.data);
    };
    
    ws.onclose = () => {
      setIsConnected(false);
    };
  }, []);
  
  return { messages, isConnected, connect };
}
