const ws = new WebSocket('ws://localhost:3000/ws/claude');

ws.onmessage = (event) => {
  try {
    const msg = JSON.parse(event.data);
    
    if (msg.error) {
      console.error('Error:', msg.error);
      return;
    }
    
    if (msg.type === 'message') {
      // Handle Claude message
      for (const block of msg.content) {
        if (block.type === 'text') {
          console.log('Assistant:', block.text);
        } else if (block.type === 'tool_use') {
          console.log('Tool call:', block.name);
        }
      }
    }
  } catch (e) {
    // Plain text output
    console.log('Output:', event.data);
  }
};

ws.onopen = () => {
  // Wait for info message, then send prompt
  setTimeout(() => {
    ws.send(JSON.stringify({
      prompt: 'Hello Claude',
      meta: 'TASK-123'
    }));
  }, 100);
};
